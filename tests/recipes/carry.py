"""A model from a folder of files, and into another one."""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`--config.stages.read.source=FOLDER` names the files."""
    return ConfigDict(
        {
            "recipe": "carry",
            "preset": arg or "tiny",
            "chat_template": "tiny",
            "stages": {
                "read": {"kind": "pretrained", "model": "tiny:student", "source": "FOLDER"},
                "export": {"kind": "export", "inputs": {"policy": "read"}},
            },
            "order": ("read", "export"),
        }
    )
