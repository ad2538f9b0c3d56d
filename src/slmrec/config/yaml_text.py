"""YAML text as Python values, bounded in size, nesting and aliases, and without repeated keys; and values as YAML."""

from typing import Any

import yaml

from slmrec.files import MAX_DEPTH, one_line

MAX_YAML_BYTES = 2**17
"""Largest YAML file that is read; the recipes have a few kB."""
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_MAX_NODES = 100_000
"""Largest number of values, those that an alias repeats among them."""


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; only plain values are built.

    Raises:
        ValueError: The text is not YAML, a key occurs twice, or there are too many or too deeply nested values.

    Example:
        >>> parse_yaml("{seed: 1, seed: 2}")
        Traceback (most recent call last):
        ...
        ValueError: the key 'seed' occurs twice in line 1
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(loader, node, MAX_DEPTH, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None
    except RecursionError:
        raise ValueError("values are nested too deeply") from None
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # as of `!!bool maybe`
        raise ValueError(f"a value does not have the type of its tag ({one_line(error)})") from None


def dump_yaml(value: Any) -> str:
    r"""Return plain values as YAML text, keys in their order.

    Example:
        >>> dump_yaml({"seed": 1, "layers": [0, 2]})
        'seed: 1\nlayers:\n- 0\n- 2\n'
    """
    return str(yaml.dump(value, Dumper=_DUMPER, sort_keys=False, allow_unicode=True))


def _check_nodes(loader: yaml.SafeLoader, node: yaml.Node, depth: int, sizes: dict[int, int]) -> int:
    """Return the number of values of a node, with those that aliases repeat.

    Args:
        loader: The loader, which builds the keys.
        node: The node.
        depth: Number of levels that may be nested.
        sizes: Results by the identity of the nodes, so that the target of an alias is counted once; 0 while a node is
            being counted.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if depth == 0:
        raise ValueError(f"values are nested more than {MAX_DEPTH} levels deep")
    if id(node) not in sizes:
        sizes[id(node)] = 0
        below = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(loader, node)
            below = [one for pair in node.value for one in pair]
        sizes[id(node)] = 1 + sum(_check_nodes(loader, one, depth - 1, sizes) for one in below)
    if not 0 < sizes[id(node)] <= _MAX_NODES:
        fault = f"more than {_MAX_NODES:,} values" if sizes[id(node)] else "an alias of a value inside that value"
        raise ValueError(f"{fault} in line {node.start_mark.line + 1}")
    return sizes[id(node)]


def _check_keys(loader: yaml.SafeLoader, node: yaml.MappingNode) -> None:
    """Refuse a mapping with the same key twice; PyYAML would take the last value."""
    keys = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            name = loader.construct_object(key)
            if name in keys:
                raise ValueError(f"the key {name!r} occurs twice in line {key.start_mark.line + 1}")
            keys.add(name)
