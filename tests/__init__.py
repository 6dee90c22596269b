"""The type checker of the tests: beartype with PEP 484's numbers, where an int is a float too."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
