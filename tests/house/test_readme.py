"""The two READMEs: the same headings and commands, every command in their table, nothing named that is not there."""

from __future__ import annotations

import re
from pathlib import Path

READMES = ("README.md", "README.zh-CN.md")
ROOMS = (
    "files",
    "mpu",
    "model",
    "data_utils",
    "training",
    "generation",
    "tasks",
    "scripts",
    "benchmarks",
    "tests/fuzz",
)
# What the READMEs of the releases point to: a part of the address.
POINTERS = {
    "the paper": "arxiv.org/abs/2103.10360",
    "the paper at ACL 2022": "aclanthology.org/2022.acl-long.26",
    "the release": "github.com/THUDM/GLM",
    "ChatGLM-6B": "github.com/THUDM/ChatGLM-6B",
    "GLM-130B": "github.com/THUDM/GLM-130B",
    "the hub": "huggingface.co/models?filter=glm,thudm",
    "weights at OneDrive": "zx-du20_mails_tsinghua_edu_cn/En6zA7_utRxHptKWZoDMO14Bkfj3uGRpslYkNvMPdGOmow?e=G0lGSc",
    "weights at Tsinghua-Cloud": "cloud.tsinghua.edu.cn/d/13f5b03da9594e5490c4",
    "GLM-10B": "lfs.aminer.cn/misc/cogview/glm-10b-1024.zip",
    "GLM-10B-Chinese": "lfs.aminer.cn/misc/cogview/glm-10b-chinese.zip",
    "mGLM": "static.aminer.cn/misc/MultiGLM/1B/pretrained.pt",
    "WuDaoCorpora": "sciencedirect.com/science/article/pii/S2666651021000152",
    "Pile": "arxiv.org/abs/2101.00027",
    "SuperGLUE": "super.gluebenchmark.com",
    "SuperGLUE's files": "super.gluebenchmark.com/tasks",
    "DeBERTa": "github.com/microsoft/DeBERTa/tree/master/experiments/superglue",
    "CNN/DailyMail": "github.com/abisee/cnn-dailymail",
    "CNN/DailyMail, prepared": "github.com/artmatsak/cnn-dailymail",
    "XSum": "github.com/EdinburghNLP/XSum",
    "XSum's files": "github.com/EdinburghNLP/XSum/tree/master/XSum-Dataset",
    "Gigaword": "github.com/harvardnlp/sent-summary",
    "LAMBADA": "github.com/cybertronai/bflm/blob/master/lambada_test.jsonl",
    "Wikitext-103": "s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-v1.zip",
    "the test set of Wikipedia and books": "EQa_B6KY_q1FjtUeG-T52iMBFtNrfhfHcZbzMxfkJKXKRQ?e=inTdHh",
    "Yahoo": "github.com/Varal7/blank_language_model",
    "apex": "github.com/NVIDIA/apex",
    "P-Tuning": "arxiv.org/abs/2103.10385",
    "files2rouge": "github.com/pltrdy/files2rouge",
    "CoreNLP": "nlp.stanford.edu/software/stanford-corenlp-full-2016-10-31.zip",
    "DeepSpeed's launcher": "www.deepspeed.ai/getting-started/#resource-configuration-multi-node",
    "DeepSpeed's configuration": "www.deepspeed.ai/docs/config-json",
    "Megatron-LM": "github.com/NVIDIA/Megatron-LM",
    "PET": "github.com/timoschick/pet",
}
COMMENT = re.compile(r"\s+#.*")


def blocks(text: str) -> list[str]:
    """Return the shell blocks without comments."""
    return [COMMENT.sub("", block) for block in re.findall(r"```shell\n(.*?)```", text, flags=re.DOTALL)]


def test_command_blocks_are_identical(repository: Path):
    for names in (READMES, ("docs/multilingual.md", "docs/multilingual.zh-CN.md")):
        english, chinese = (blocks((repository / name).read_text(encoding="utf-8")) for name in names)
        assert english and english == chinese


def headings(text: str) -> list[int]:
    """Return the levels of the headings outside code blocks."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", outside, flags=re.MULTILINE)]


def listed_commands(text: str) -> list[str]:
    """Return the commands of the table of all commands."""
    return re.findall(r"^\|[^|`]*\| `((?:bash|python) [^`]+)` \|", text, flags=re.MULTILINE)


def commands(repository: Path) -> set[str]:
    """Return what can be typed: scripts with an interpreter line (others are sourced), and modules that run."""
    scripts = [*repository.glob("scripts/**/*.sh"), *repository.glob("benchmarks/*.sh")]
    found = {f"bash {path.relative_to(repository)}" for path in scripts if path.read_text(encoding="utf-8")[:2] == "#!"}
    for path in [*repository.glob("*.py"), *(file for room in ROOMS for file in (repository / room).rglob("*.py"))]:
        name = path.relative_to(repository)
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
            is_file = len(name.parts) == 1 or name.parts[0] == "scripts"
            module = ".".join(name.with_suffix("").parts).removesuffix(".__main__")
            found.add(f"python {name}" if is_file else f"python -m {module}")
    return found


def test_headings_are_in_step(repository: Path):
    english, chinese = (headings((repository / name).read_text(encoding="utf-8")) for name in READMES)
    assert english == chinese


def links(text: str) -> set[str]:
    """Return what the text links to, pages that exist in two languages under the English name."""
    return {link.replace(".zh-CN", "") for link in re.findall(r"\]\(([^)\s]+)\)", text)} - {"README.md"}


def test_links_are_in_step(repository: Path):
    english, chinese = (links((repository / name).read_text(encoding="utf-8")) for name in READMES)
    assert english == chinese


def test_what_the_releases_point_to_is_linked(repository: Path):
    for name in READMES:
        found = links((repository / name).read_text(encoding="utf-8"))
        assert not [what for what, part in POINTERS.items() if not any(link.endswith(part) for link in found)], name


def test_notice_names_every_work_and_the_texts_are_there(repository: Path):
    notice = (repository / "NOTICE").read_text(encoding="utf-8")
    for work in (
        "THUDM/GLM",
        "THUDM/Multilingual-GLM",
        "NVIDIA/Megatron-LM",
        "timoschick/pet",
        "FlagPerf",
        "DeepSpark",
    ):
        assert work in notice
    for file, text in (
        ("LICENSE", "Permission is hereby granted"),
        ("licenses/MIT.txt", "(c) 2021 THUDM"),
        ("licenses/Apache-2.0.txt", "END OF TERMS AND CONDITIONS"),
        ("licenses/BSD-3-Clause.txt", "NVIDIA CORPORATION"),
    ):
        assert text in (repository / file).read_text(encoding="utf-8")


def test_every_command_is_in_the_table(repository: Path):
    for name in READMES:
        listed = listed_commands((repository / name).read_text(encoding="utf-8"))
        assert len(listed) == len(set(listed))
        assert set(listed) == commands(repository), name


def test_named_files_exist(repository: Path):
    for name in READMES:
        text = (repository / name).read_text(encoding="utf-8")
        files = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
        files += [word for block in blocks(text) for word in re.findall(r"(?:scripts|config_tasks)/[\w.-]+", block)]
        files += re.findall(r"`((?:scripts|training|model|mpu|data_utils|generation|tasks)/[\w/.-]+\.(?:py|sh))`", text)
        assert files
        assert not [file for file in files if not (repository / file).exists()], name


def test_released_model_files_are_in_the_table(repository: Path):
    table = (repository / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"model_blocklm_[\w.]+\.sh", table))
    assert all((repository / "config_tasks" / file).is_file() for file in named)
    assert len(named) >= 10


def test_the_torch_that_is_named_is_the_tested_one(repository: Path):
    (tested,) = re.findall(r"^(torch==\S+)", (repository / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for name in READMES:
        assert set(re.findall(r"torch==[\w.]+", (repository / name).read_text(encoding="utf-8"))) == {tested}


def test_every_requirement_has_a_tested_version(repository: Path):
    """Optional extras of one program apart, what pyproject.toml asks for has an exact version in constraints.txt."""
    project = (repository / "pyproject.toml").read_text(encoding="utf-8").split("[tool.")[0]
    lists = re.findall(r"^([\w-]+) = \[(.*)\]$", project.partition("dependencies")[2], re.MULTILINE)
    lists.append(("dependencies", re.search(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)[1]))
    extras = re.search(r"\[(.*)\]", (repository / "requirements.txt").read_text(encoding="utf-8"))[1].split(",")
    required = {name for extra, text in lists if extra in (*extras, "dependencies")
              for name in re.findall(r'"([\w-]+)', text)}  # fmt: skip
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line and line[0] != "#"}
    assert "transformers" in required
    assert {name.lower() for name in required} <= pinned
