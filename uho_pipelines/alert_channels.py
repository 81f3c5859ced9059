"""How an alert is sent: a webhook, Slack, e-mail.

What belongs here: one attempt by one channel, and why it failed. The addresses are secrets: what is told of them is the
host.
"""

import smtplib
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import urlsplit

import requests

from uho_pipelines.errors import UhoError
from uho_pipelines.settings import AlertSettings, EmailSettings
from uho_pipelines.warehouse.alerts import Alert

TIMEOUT_SECONDS = 10.0

SUBJECT_CHARACTERS = 150


class DeliveryError(UhoError):
    """A channel did not take an alert. `wait_seconds`: it asked for so much patience; 0: for none."""

    def __init__(self, channel: str, host: str, reason: str, wait_seconds: float = 0.0) -> None:
        self.channel = channel
        self.wait_seconds = wait_seconds
        super().__init__(f"{channel} ({host}): {reason}")


Send = Callable[[Alert], None]
"""One attempt to deliver an alert.

Raises:
    DeliveryError: it was not taken.
"""


def channels(settings: AlertSettings) -> dict[str, Send]:
    """Return the channels that are set, by name."""
    found: dict[str, Send] = {}
    if settings.webhook_url is not None:
        webhook = settings.webhook_url.get_secret_value()
        found["webhook"] = lambda alert: _post("webhook", webhook, webhook_document(alert))
    if settings.slack_url is not None:
        slack = settings.slack_url.get_secret_value()
        found["Slack"] = lambda alert: _post("Slack", slack, slack_document(alert))
    email = settings.email
    if email is not None:
        found["e-mail"] = lambda alert: _mail(email, alert)
    return found


def webhook_document(alert: Alert) -> dict[str, object]:
    """Return what a webhook is sent; an alert that is sent twice has the same `id`."""
    return {
        "id": f"uho-alert-{alert.id}",
        "kind": alert.kind,
        "title": alert.title,
        "text": alert.body,
        "link": alert.link,
        "openedAt": alert.opened_at.isoformat(),
        "occurrences": alert.occurrences,
    }


def slack_document(alert: Alert) -> dict[str, object]:
    """Return what a Slack incoming webhook is sent. The text is of archives and IDLs, so hostile: nothing is markup."""
    plain = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return {
        "blocks": [
            {"type": "section", "text": {"type": "plain_text", "text": alert.title, "emoji": False}},
            {"type": "section", "text": {"type": "plain_text", "text": alert.body, "emoji": False}},
            {"type": "section", "text": {"type": "mrkdwn", "text": f"<{alert.link.translate(plain)}|Open in Dagster>"}},
        ],
        "text": alert.title.translate(plain),
        "unfurl_links": False,
    }


def email_message(settings: EmailSettings, alert: Alert) -> EmailMessage:
    """Return the message; one that is sent twice has the same id."""
    message = EmailMessage()
    message["From"] = settings.sender
    message["To"] = ", ".join(settings.recipients)
    message["Subject"] = " ".join(alert.title.split())[:SUBJECT_CHARACTERS]
    message["Date"] = format_datetime(alert.opened_at)
    message["Message-ID"] = (
        f"<uho-alert-{alert.id}-{int(alert.opened_at.timestamp())}@{settings.sender.rpartition('@')[2]}>"
    )
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"{alert.body}\n\n{alert.link}\n")
    return message


def _post(channel: str, url: str, document: dict[str, object]) -> None:
    host = urlsplit(url).hostname or "no host"
    try:
        answer = requests.post(url, json=document, timeout=TIMEOUT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        # Their messages repeat the URL, which is a secret.
        raise DeliveryError(channel, host, f"no answer ({type(error).__name__})") from None
    if not 200 <= answer.status_code < 300:
        waited = _retry_after(answer.headers.get("Retry-After"))
        raise DeliveryError(channel, host, f"answered with status {answer.status_code}", waited)


def _retry_after(text: str | None) -> float:
    """Return the seconds that a `Retry-After` asks for, given as seconds or as a date; 0 when it does not."""
    if text is None:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _mail(settings: EmailSettings, alert: Alert) -> None:
    try:
        if settings.tls == "tls":
            context = ssl.create_default_context()
            server = smtplib.SMTP_SSL(settings.host, settings.port, timeout=TIMEOUT_SECONDS, context=context)
        else:
            server = smtplib.SMTP(settings.host, settings.port, timeout=TIMEOUT_SECONDS)
        with server:
            if settings.tls == "starttls":
                server.starttls(context=ssl.create_default_context())
            if settings.user is not None and settings.password is not None:
                server.login(settings.user, settings.password.get_secret_value())
            refused = server.send_message(email_message(settings, alert))
    except smtplib.SMTPResponseException as error:
        raise DeliveryError("e-mail", settings.host, f"refused with code {error.smtp_code}") from None
    except (OSError, smtplib.SMTPException) as error:
        raise DeliveryError("e-mail", settings.host, f"not sent ({type(error).__name__})") from None
    if refused:
        # The others have it; it is tried again for all, so that nobody misses it.
        raise DeliveryError("e-mail", settings.host, f"refused for {len(refused)} of {len(settings.recipients)} people")
