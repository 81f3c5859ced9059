//! The one place where URLs lose what may be secret before they reach a log, an error or a control record.
//!
//! User names, passwords, query strings and fragments go, and so does any path segment that looks like a
//! key: 16 or more letters, digits, `-` or `_` with both letters and digits among them and no dot (file
//! names of the archive have one). Text that holds no URL passes unchanged.

use std::borrow::Cow;

const OPAQUE_SEGMENT: usize = 16;

/// Redacts every URL inside a text.
///
/// ```
/// use uho_sidecar::redact;
///
/// assert_eq!(redact("GET https://me:pw@host/v2/0a1b2c3d4e5f6a7b/800/epoch-800.car?key=1: 404"),
///            "GET https://host/v2/…/800/epoch-800.car?…: 404");
/// assert_eq!(redact("/data/archive"), "/data/archive");
/// ```
pub fn redact(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("://") {
        let (before, after) = rest.split_at(place + 3);
        clean.push_str(before);
        let end = after
            .find(|character: char| {
                character.is_whitespace() || matches!(character, '"' | '\'' | '`' | '<' | '>' | ')')
            })
            .unwrap_or(after.len());
        // Punctuation after a URL belongs to the sentence around it.
        let url = after[..end].trim_end_matches([':', ',', ';', '.']);
        push_redacted(url, &mut clean);
        rest = &after[url.len()..];
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

/// Appends what follows `scheme://`, without its secrets.
fn push_redacted(url: &str, clean: &mut String) {
    let query = url.find(['?', '#']);
    let location = &url[..query.unwrap_or(url.len())];
    let (authority, path) = location.split_at(location.find('/').unwrap_or(location.len()));
    clean.push_str(authority.rsplit('@').next().unwrap_or_default());
    for (place, segment) in path.split('/').enumerate() {
        if place > 0 {
            clean.push('/');
        }
        clean.push_str(if is_opaque(segment) { "…" } else { segment });
    }
    if query.is_some() {
        clean.push_str("?…");
    }
}

fn is_opaque(segment: &str) -> bool {
    segment.len() >= OPAQUE_SEGMENT
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && segment.bytes().any(|byte| byte.is_ascii_digit())
        && segment.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn secrets_in_any_part_of_a_url_are_gone() {
        for text in [
            "http://user:hunter2secret@host:80/a",
            "http://host/a?token=hunter2secret",
            "http://host/a#hunter2secret",
            "http://host/hunter2secret-longer-key/x",
            "error for url (https://hunter2secret@host/)",
            "a http://host/ok then http://hunter2secret@host?hunter2secret",
        ] {
            let clean = redact(text);
            assert!(!clean.contains("hunter2secret"), "{clean}");
            assert!(clean.contains("host"), "{clean}");
        }
    }
}
