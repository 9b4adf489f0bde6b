"""What an installation holds: the two packages and, inside one of them, the folder configs/."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["odvae", "odvae.*", "ldm", "ldm.*"]), "ldm.configs"],
    package_dir={"ldm.configs": "configs"},
    package_data={
        "odvae": ["py.typed"],
        "odvae.training": ["devices.yaml"],
        "ldm": ["py.typed"],
        "ldm.app": ["page.css"],
        "ldm.planning": ["text_encoders.yaml"],
        "ldm.report": ["templates/*.j2"],
        "ldm.configs": ["*.yaml", "*/*.yaml"],
    },
)
