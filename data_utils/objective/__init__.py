"""The objective: packing documents into samples, choosing spans, making blanks."""
