//! Where another trust domain serves its bundle: an https URL, read and written as Go's `net/url` does it.
//!
//! The URL is stored and shown in the form that Go gives it, so that a database and a script see the same text whichever
//! server wrote it.

use std::net::Ipv6Addr;

/// The URL of a bundle endpoint: `https`, with a host, without user info.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUrl {
    text: String,
}

/// Why a text is not the URL of a bundle endpoint. The texts are SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    #[error("failed to parse bundle endpoint URL: parse {url}: {cause}")]
    Malformed { url: String, cause: UrlFault },
    #[error("bundle endpoint URL must use the https scheme")]
    NotHttps,
    #[error("bundle endpoint URL must specify the host")]
    NoHost,
    #[error("bundle endpoint URL must not contain user info")]
    UserInfo,
}

/// What is wrong with a URL, in the words of Go's parser.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    #[error("net/url: invalid control character in URL")]
    ControlCharacter,
    #[error("missing protocol scheme")]
    MissingScheme,
    #[error("first path segment in URL cannot contain colon")]
    ColonInFirstSegment,
    #[error("net/url: invalid userinfo")]
    UserInfo,
    #[error("missing ']' in host")]
    MissingBracket,
    #[error("invalid host: {0}")]
    Address(String),
    #[error("invalid port {0} after host")]
    Port(String),
    #[error("invalid character {0} in host name")]
    HostCharacter(String),
    #[error("invalid URL escape {0}")]
    Escape(String),
}

impl EndpointUrl {
    /// Reads a URL as it was typed.
    pub fn parse(given: &str) -> Result<EndpointUrl, EndpointUrlError> {
        let (before_fragment, fragment) = match given.split_once('#') {
            Some((before, fragment)) => (before, Some(fragment)),
            None => (given, None),
        };
        let malformed = |url: &str, cause| EndpointUrlError::Malformed { url: quoted(url), cause };
        let parts = Parts::read(before_fragment).map_err(|cause| malformed(before_fragment, cause))?;
        let fragment = fragment.map(|text| respelled(text, Place::Fragment)).transpose();
        let fragment = fragment.map_err(|cause| malformed(given, cause))?.filter(|text| !text.is_empty());
        if parts.scheme != "https" {
            return Err(EndpointUrlError::NotHttps);
        }
        if parts.host.is_empty() {
            return Err(EndpointUrlError::NoHost);
        }
        if parts.has_user_info {
            return Err(EndpointUrlError::UserInfo);
        }
        let mut text = format!("https://{}{}", parts.host, parts.path);
        if let Some(query) = parts.query {
            text.push('?');
            text.push_str(query);
        }
        if let Some(fragment) = fragment {
            text.push('#');
            text.push_str(&fragment);
        }
        Ok(EndpointUrl { text })
    }

    /// The URL in Go's spelling.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A URL without its fragment. Host and path are in the form in which they are written.
struct Parts<'a> {
    scheme: String,
    has_user_info: bool,
    host: String,
    path: String,
    query: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn read(url: &'a str) -> Result<Parts<'a>, UrlFault> {
        if url.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err(UrlFault::ControlCharacter);
        }
        let (scheme, rest) = split_scheme(url)?;
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let mut parts =
            Parts { scheme, has_user_info: false, host: String::new(), path: String::new(), query };
        let mut path = rest;
        if !rest.starts_with('/') {
            if !parts.scheme.is_empty() {
                return Ok(parts);
            }
            if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
                return Err(UrlFault::ColonInFirstSegment);
            }
        } else if let Some(authority) = rest
            .strip_prefix("//")
            .filter(|authority| !parts.scheme.is_empty() || !authority.starts_with('/'))
        {
            let end = authority.find('/').unwrap_or(authority.len());
            let (authority, after) = authority.split_at(end);
            path = after;
            match authority.rsplit_once('@') {
                None => parts.host = host(authority)?,
                Some((user, of_host)) => {
                    parts.host = host(of_host)?;
                    if !user.chars().all(may_be_in_user_info) {
                        return Err(UrlFault::UserInfo);
                    }
                    unescape(user, Place::UserInfo)?;
                    parts.has_user_info = true;
                }
            }
        }
        parts.path = respelled(path, Place::Path)?;
        Ok(parts)
    }
}

/// The part of a URL that a text belongs to: each has characters of its own that need no escape.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    UserInfo,
    Host,
    Zone,
    Path,
    Fragment,
}

/// The scheme in lowercase (empty for none) and what follows it.
fn split_scheme(url: &str) -> Result<(String, &str), UrlFault> {
    for (at, byte) in url.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err(UrlFault::MissingScheme),
            b':' => {
                let (scheme, rest) = url.split_at(at);
                return Ok((scheme.to_ascii_lowercase(), rest.strip_prefix(':').unwrap_or(rest)));
            }
            _ => break,
        }
    }
    Ok((String::new(), url))
}

fn may_be_in_user_info(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c)
}

/// `host`, `host:port` or `[address]:port`, respelled.
fn host(text: &str) -> Result<String, UrlFault> {
    let Some(bracketed) = text.strip_prefix('[') else {
        if let Some(colon) = text.find(':') {
            port(text.get(colon..).unwrap_or_default())?;
        }
        return Ok(escape(&unescape(text, Place::Host)?, Place::Host));
    };
    let (address, after) = bracketed.rsplit_once(']').ok_or(UrlFault::MissingBracket)?;
    port(after)?;
    let (address, zone) = match address.split_once("%25") {
        Some((address, zone)) => (address, Some(unescape(zone, Place::Zone)?)),
        None => (address, None),
    };
    if address.parse::<Ipv6Addr>().is_err() || zone.as_ref().is_some_and(Vec::is_empty) {
        return Err(UrlFault::Address(format!("ParseAddr({}): not an IPv6 address", quoted(address))));
    }
    let zone = zone.map(|zone| format!("%25{}", escape(&zone, Place::Zone))).unwrap_or_default();
    Ok(format!("[{address}{zone}]{after}"))
}

/// Nothing, or a colon and digits, or a colon alone.
fn port(text: &str) -> Result<(), UrlFault> {
    let digits = match text.strip_prefix(':') {
        Some(digits) => digits,
        None if text.is_empty() => return Ok(()),
        None => return Err(UrlFault::Port(quoted(text))),
    };
    match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Ok(()),
        false => Err(UrlFault::Port(quoted(text))),
    }
}

/// The text as it is if every character may stand there, else with escapes where they are needed.
fn respelled(text: &str, place: Place) -> Result<String, UrlFault> {
    let plain = unescape(text, place)?;
    let may_stand = |byte: u8| b"!$&'()*+,;=:@[]%".contains(&byte) || !needs_escape(byte, place);
    Ok(match text.bytes().all(may_stand) {
        true => text.to_owned(),
        false => escape(&plain, place),
    })
}

fn unescape(text: &str, place: Place) -> Result<Vec<u8>, UrlFault> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let in_host = matches!(place, Place::Host | Place::Zone);
        if byte == b'%' {
            let value = bytes.get(at + 1..at + 3).and_then(|digits| {
                let digits = std::str::from_utf8(digits).ok()?;
                digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
                u8::from_str_radix(digits, 16).ok()
            });
            let shown = || {
                let shown = bytes.get(at..bytes.len().min(at + 3)).unwrap_or_default();
                UrlFault::Escape(quoted(&String::from_utf8_lossy(shown)))
            };
            let value = value.ok_or_else(shown)?;
            // In a host only what is not ASCII may be escaped; in a zone also what may not stand there.
            let refused = match place {
                Place::Host => value < 0x80 && value != b'%',
                Place::Zone => value != b'%' && value != b' ' && needs_escape(value, Place::Host),
                _ => false,
            };
            if refused {
                return Err(shown());
            }
            plain.push(value);
            at += 3;
            continue;
        }
        if in_host && byte < 0x80 && needs_escape(byte, place) {
            return Err(UrlFault::HostCharacter(quoted(&char::from(byte).to_string())));
        }
        plain.push(byte);
        at += 1;
    }
    Ok(plain)
}

fn escape(plain: &[u8], place: Place) -> String {
    let mut text = String::with_capacity(plain.len());
    for byte in plain {
        if needs_escape(*byte, place) {
            text.push_str(&format!("%{byte:02X}"));
        } else {
            text.push(char::from(*byte));
        }
    }
    text
}

fn needs_escape(byte: u8, place: Place) -> bool {
    if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
        return false;
    }
    match place {
        Place::Host | Place::Zone => !b"!$&'()*+,;=:[]<>\"".contains(&byte),
        Place::Path => !b"$&+,/:;=@".contains(&byte),
        Place::Fragment => !b"$&+,/:;=?@!()*".contains(&byte),
        Place::UserInfo => !b"$&+,;=".contains(&byte),
    }
}

fn quoted(text: &str) -> String {
    finial_daemon::argv::text::quote(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What SPIRE 1.15.3 stored for each.
    #[test]
    fn urls_are_spelled_as_go_spells_them() {
        for (given, stored) in [
            ("https://h", "https://h"),
            ("HTTPS://Host.ORG:8443/A b?x=é#f", "https://Host.ORG:8443/A%20b?x=é#f"),
            ("https://ü.org/ü", "https://%C3%BC.org/%C3%BC"),
            ("https://h/?a b", "https://h/?a b"),
            ("https://h/\"<>[]|^", "https://h/%22%3C%3E%5B%5D%7C%5E"),
            ("https://h?q", "https://h?q"),
            ("https://h?", "https://h?"),
            ("https://h/#a b", "https://h/#a%20b"),
            ("https://h/#", "https://h/"),
            ("https://h/%2f", "https://h/%2f"),
            ("https://h/%2f/ä", "https://h///%C3%A4"),
            ("https://h/(!)", "https://h/(!)"),
            ("https://h/(!) ", "https://h/%28%21%29%20"),
            ("https://h/a%20b c", "https://h/a%20b%20c"),
            ("https://h:", "https://h:"),
            ("https://[::1]:443/x", "https://[::1]:443/x"),
        ] {
            assert_eq!(EndpointUrl::parse(given).unwrap().as_str(), stored, "{given}");
        }
    }

    #[test]
    fn wrong_urls_are_told_in_the_words_of_go() {
        const SCHEME: &str = "bundle endpoint URL must use the https scheme";
        const HOST: &str = "bundle endpoint URL must specify the host";
        const USER: &str = "bundle endpoint URL must not contain user info";
        for (given, text) in [
            ("", SCHEME),
            ("x", SCHEME),
            ("http://x", SCHEME),
            ("//x", SCHEME),
            ("https:", HOST),
            ("https:h", HOST),
            ("https://", HOST),
            ("https:///x", HOST),
            ("https://u:p@h", USER),
            ("https://u@p@h/", USER),
            ("https://@h", USER),
        ] {
            assert_eq!(EndpointUrl::parse(given).unwrap_err().to_string(), text, "{given}");
        }
        for (given, text) in [
            (":x", r#"":x": missing protocol scheme"#),
            ("https://h\n", r#""https://h\n": net/url: invalid control character in URL"#),
            ("https://h:x", r#""https://h:x": invalid port ":x" after host"#),
            ("https://a:b:c/", r#""https://a:b:c/": invalid port ":b:c" after host"#),
            ("https://h%zz", r#""https://h%zz": invalid URL escape "%zz""#),
            ("https://h/%zz", r#""https://h/%zz": invalid URL escape "%zz""#),
            ("https://h/%4", r#""https://h/%4": invalid URL escape "%4""#),
            ("https://h/#%zz", r#""https://h/#%zz": invalid URL escape "%zz""#),
            ("https://%41h/", r#""https://%41h/": invalid URL escape "%41""#),
            ("https://h h", r#""https://h h": invalid character " " in host name"#),
            (r"https://h\x", r#""https://h\\x": invalid character "\\" in host name"#),
            ("https://[::1", r#""https://[::1": missing ']' in host"#),
            ("https://u\"@h", r#""https://u\"@h": net/url: invalid userinfo"#),
            ("1ht://x", r#""1ht://x": first path segment in URL cannot contain colon"#),
            ("ht_p://x", r#""ht_p://x": first path segment in URL cannot contain colon"#),
        ] {
            let text = format!("failed to parse bundle endpoint URL: parse {text}");
            assert_eq!(EndpointUrl::parse(given).unwrap_err().to_string(), text, "{given}");
        }
        assert!(EndpointUrl::parse("https://[zone]/").is_err());
    }

    proptest! {
        /// Whatever is given, it is refused or comes to a spelling that stays.
        #[test]
        fn a_spelling_is_final(given in "(https?://)?[a-zA-Z0-9%@:/?#\\[\\]<>\"ü \\-._~!$&'()*+,;=|^]{0,40}|.{0,20}") {
            if let Ok(url) = EndpointUrl::parse(&given) {
                prop_assert!(url.as_str().starts_with("https://"));
                let again = EndpointUrl::parse(url.as_str());
                prop_assert_eq!(again.as_ref().map(EndpointUrl::as_str), Ok(url.as_str()));
            }
        }
    }
}
