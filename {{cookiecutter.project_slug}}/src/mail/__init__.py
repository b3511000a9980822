"""E-mail over SMTP. See docs/mail.md.

Your texts are in `templates`: `<name>.txt`, whose first line is the subject, and `<name>.html`.
"""
