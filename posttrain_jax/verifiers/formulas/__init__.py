"""Reading and comparing written mathematics; what `math_answer` is made of."""
