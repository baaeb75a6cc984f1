"""How wheels are laid out; pyproject.toml names what goes into them."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RoomsBelowOneFolder(BuildHookInterface):
    """Put the rooms of the repository below glm_blank_infilling/, where no package called model is in anybody's way.

    Editable installations need none of it: the repository itself is on their path.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"].update({name: f"glm_blank_infilling/{name}" for name in self.config["below"]})
