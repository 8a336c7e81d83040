from probex_jax.reports import table


def test_text_of_strangers_cannot_break_out_of_a_cell():
    lines = table([{"layer": "a|b\nc\x1b[31m", "value": 1}]).splitlines()
    assert len(lines) == 3
    assert lines[2] == "| a\\|b\\nc\\x1b[31m | 1     |"
