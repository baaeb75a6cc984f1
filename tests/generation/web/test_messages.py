"""What a token adds to a text, also where several tokens are one character."""

from __future__ import annotations

from pathlib import Path

from data_utils.tokenizers.tokenizer import build_tokenizer
from data_utils.train_tokenizer import train
from generation.infill import Token
from generation.inputs import encode_prompt
from generation.requests import FillRequest, TokenDrawn
from generation.sampling import DecodingSettings
from generation.web.messages import Reply, token_texts


def test_a_character_of_several_tokens_comes_with_the_last(tmp_path: Path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog ran\n" * 20, encoding="utf-8")
    file = train([str(tmp_path / "text.txt")], tmp_path / "tokenizer.model", vocab_size=300, num_threads=1)
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=file, task_mask=True)
    ids = tokenizer.encode(" the 猫 sat")
    texts = token_texts(ids, tokenizer)
    assert "".join(texts) == tokenizer.decode(ids) and len(texts) == len(ids) > 5
    assert texts.count("") == 2 and "猫" in texts and "\ufffd" not in "".join(texts)
    assert token_texts([], tokenizer) == []

    request = FillRequest(encode_prompt("the [MASK]", tokenizer=tokenizer), DecodingSettings(max_length=20))
    reply = Reply(request, tokenizer, ("python",))
    told = [message for token in ids for message in reply.messages(TokenDrawn(request, 0, 0, Token(token, -1.0)))]
    assert [message["text"] for message in told] == texts
