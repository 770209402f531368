"""Settings of the documentation. `make docs` builds it, with the package installed."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import spikebrain

project = "spikebrain"
author = "The spikebrain authors"
release = spikebrain.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"spikebrain {release}"
html_show_copyright = html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["docs.css"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # pages link to headings, as they do on a code host

default_role = "code"  # a word in single backticks is code, in docstrings as in Markdown
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes in types would be read as markup
# What has no page here: types of other packages, shapes, type variables, and what a name with _ keeps to itself.
nitpick_ignore_regex = [
    ("py:.*", r"(?!spikebrain\.).*"),
    ("py:.*", r".*\.(_\w+|T|State|Model|FusedExperts|Place|SpikeAwareLinear|SpikingBrainPre\w+)"),
]

EMPHASIS = r"\*[^\s*][^*]*(?<![\s\[(])\*(?!\w)"


def escaped(line):
    """Return a line of a docstring in which |x|, *args and name_ are plain text, but `code` and *emphasis* are not."""
    parts = re.split(rf"(`[^`]*`|{EMPHASIS})", line)
    parts[::2] = [re.sub(r"(\||\*(?=\S)|(?<=\w)_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def escape_docstring(app, what, name, obj, options, lines):
    """Our docstrings are plain text: take away what reStructuredText would see in it, except in examples."""
    in_example = False
    for i, line in enumerate(lines):
        in_example = bool(line.strip()) and (in_example or line.lstrip().startswith(">>>"))
        if not in_example:
            lines[i] = escaped(line)


def is_noise(app, what, name, obj, skip, options):
    """Leave out fields of named tuples, which the class describes; None leaves all else as it is."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def prepare_page(app, name, source):
    """Make links to files beside docs/ plain text, and list what `import spikebrain` exports where {exports} stands."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", source[0])
    if name == "api/index":
        rows = [
            f"| [`{room}`]({room}.md) | " + ", ".join(f"{{py:obj}}`~spikebrain.{room}.{x}`" for x in names) + " |"
            for room, names in spikebrain._HOMES.items()
        ]
        source[0] = source[0].replace("{exports}", "\n".join(["| from | names |", "| --- | --- |", *rows]))


def write_mathml(writer, node):
    """Write a formula as MathML, which browsers show without a script and without a network."""
    as_block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=as_block)
    writer.body.append(f'<div class="formula">{formula}</div>' if as_block else formula)
    raise nodes.SkipNode


def setup(app):
    """Connect what Sphinx has no setting for."""
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon, at 500
    app.connect("autodoc-skip-member", is_noise)
    app.connect("source-read", prepare_page)
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))


html_math_renderer = "mathml"
