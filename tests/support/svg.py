"""What the tests look for in a drawn SVG."""

SVG = "{http://www.w3.org/2000/svg}"  # before the name of each element


def texts_of(svg):
    """The texts of a picture, an ElementTree, in its order."""
    return ["".join(text.itertext()) for text in svg.iter(SVG + "text")]
