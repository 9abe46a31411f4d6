"""Where the tokens of SentencePiece begin, by their pieces alone."""


def bytes_of(tokenizer, token):
    """The UTF-8 bytes that a token stands for."""
    piece = tokenizer._processor.id_to_piece(token)
    if tokenizer._processor.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace("\u2581", " ").encode()


def first_characters(tokenizer, text, ids):
    """For each token the character that holds its first byte."""
    character_of_byte = []
    for place, character in enumerate(text.replace("\u2581", " ")):
        character_of_byte += [place] * len(character.encode())
    first, num_bytes = [], 0
    for token in ids:
        first.append(character_of_byte[num_bytes])
        num_bytes += len(bytes_of(tokenizer, token))
    return first
