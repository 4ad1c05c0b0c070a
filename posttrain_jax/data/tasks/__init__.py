"""Procedural tasks, one file each: a generator of examples and the checker of their answers.

A task module has `KIND`, `make_example(rng, language, **options) -> dict` and
`check(answer, example) -> bool`, where `answer` is the text between the answer tags. Wordings are
bilingual (`en`, `zh`). The file name is the task's name.
"""
