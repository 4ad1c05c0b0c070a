"""Package mapping only: `kernels/`, `configs/` and `launch/` are top-level folders of the
repository, imported and shipped below `posttrain_jax`. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

MAPPED = ("kernels", "configs", "launch")

setup(
    packages=[
        *find_packages(
            include=["posttrain_jax*"], exclude=[f"posttrain_jax.{name}*" for name in MAPPED]
        ),
        *[f"posttrain_jax.{name}" for name in MAPPED],
    ],
    package_dir={f"posttrain_jax.{name}": name for name in MAPPED},
)
