"""Names of files, runs and classes as a stranger may choose them."""

HOSTILE_NAMES = [
    *("[red]run[/red]", "[/]", "[bold", "[link=http://x]y[/link]", "[@click=app.quit]z"),
    *("\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\bb", "\x7f", "bell\x07"),
    *("two\nlines", "tab\there", "\u2028line", "\u202egnp.exe", "\ufeffbom", "zero\u200bwidth"),
    *("undecodable\udce9", "\ud800", "nul\0inside"),
    *("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1"),
    *("<script>alert(1)</script>", '"onmouseover="alert(1)', "'><img src=x>", "{{ 7*7 }}"),
    *("$\\frac{1}{2$", "$x$", "_hidden", "%s %d %(x)s", "{0.__class__}", "${oc.env:HOME}"),
    *("Fréchet", "日本語", "😀", "٣", "a" * 5000, "", " ", "--help", "~", "../../x"),
]
