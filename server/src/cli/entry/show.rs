//! Entries as text.

use std::fmt::Write;

use finial_daemon::argv::text;
use finial_proto::spire::api::types::{Entry, Spiffeid};

use crate::cli::output::{counted, id_text};

/// `Found 2 entries` and the entries.
pub fn found(entries: &[Entry]) -> String {
    let mut out = format!("Found {}\n", counted(entries.len(), "", "entry", "entries"));
    entries.iter().for_each(|one| entry(&mut out, one));
    out
}

/// The order in which entries are shown: SPIFFE ID, parent, lifetimes, selectors. Selectors are sorted too.
pub fn sort(entries: &mut [Entry]) {
    for entry in entries.iter_mut() {
        entry.selectors.sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
    }
    fn id(id: Option<&Spiffeid>) -> (&str, &str) {
        id.map_or(("", ""), |id| (&id.trust_domain, &id.path))
    }
    fn key(entry: &Entry) -> impl Ord + '_ {
        let selectors: Vec<_> = entry.selectors.iter().map(|one| (&one.r#type, &one.value)).collect();
        let ids = (id(entry.spiffe_id.as_ref()), id(entry.parent_id.as_ref()));
        (ids, entry.x509_svid_ttl, entry.jwt_svid_ttl, selectors.len(), selectors)
    }
    entries.sort_by(|a, b| key(a).cmp(&key(b)));
}

/// One entry and an empty line.
pub fn entry(out: &mut String, entry: &Entry) {
    // Writing to a string does not fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<24}: {value}");
    };
    line("Entry ID", if entry.id.is_empty() { "(none)" } else { &entry.id });
    line("SPIFFE ID", &id_text(entry.spiffe_id.as_ref()));
    line("Parent ID", &id_text(entry.parent_id.as_ref()));
    line("Revision", &entry.revision_number.to_string());
    if entry.downstream {
        line("Downstream", "true");
    }
    line("X509-SVID TTL", &lifetime(entry.x509_svid_ttl));
    line("JWT-SVID TTL", &lifetime(entry.jwt_svid_ttl));
    if entry.expires_at != 0 {
        line("Expiration time", &text::utc_time(entry.expires_at));
    }
    for selector in &entry.selectors {
        line("Selector", &format!("{}:{}", selector.r#type, selector.value));
    }
    entry.federates_with.iter().for_each(|name| line("FederatesWith", name));
    entry.dns_names.iter().for_each(|name| line("DNS name", name));
    if entry.admin {
        line("Admin", "true");
    }
    if entry.store_svid {
        line("StoreSvid", "true");
    }
    if !entry.hint.is_empty() {
        line("Hint", &entry.hint);
    }
    let attributes = entry.additional_attributes.unwrap_or_default();
    if attributes.disable_x509_svid_prefetch {
        line("DisableX509SvidPrefetch", "true");
    }
    if attributes.jwt_svid_include_jti {
        line("JwtSvidIncludeJti", "true");
    }
    out.push('\n');
}

fn lifetime(seconds: i32) -> String {
    if seconds == 0 { "default".to_owned() } else { seconds.to_string() }
}

#[cfg(test)]
mod tests {
    use finial_proto::spire::api::types::Selector;
    use finial_proto::spire::api::types::entry::AdditionalAttributes;

    use super::*;

    fn id(path: &str) -> Option<Spiffeid> {
        Some(Spiffeid { trust_domain: "example.org".into(), path: path.into() })
    }

    fn selector(value: &str) -> Selector {
        Selector { r#type: "unix".into(), value: value.into() }
    }

    fn plain() -> Entry {
        Entry {
            id: "e-1".into(),
            spiffe_id: id("/a"),
            parent_id: id("/node"),
            selectors: vec![selector("uid:1")],
            ..Entry::default()
        }
    }

    const PLAIN: &str = "\
Entry ID                : e-1
SPIFFE ID               : spiffe://example.org/a
Parent ID               : spiffe://example.org/node
Revision                : 0
X509-SVID TTL           : default
JWT-SVID TTL            : default
Selector                : unix:uid:1

";

    #[test]
    fn prints_as_spire_does() {
        assert_eq!(found(&[]), "Found 0 entries\n");
        assert_eq!(found(&[plain()]), format!("Found 1 entry\n{PLAIN}"));
        assert_eq!(found(&[plain(), plain()]), format!("Found 2 entries\n{PLAIN}{PLAIN}"));
        let full = Entry {
            id: String::new(),
            selectors: vec![selector("gid:2"), selector("uid:1")],
            x509_svid_ttl: 60,
            federates_with: vec!["bar.org".into(), "foo.org".into()],
            admin: true,
            downstream: true,
            expires_at: 4_000_000_000,
            dns_names: vec!["a.b".into(), "c.d".into()],
            revision_number: 3,
            store_svid: true,
            jwt_svid_ttl: 61,
            hint: "h\"<>é".into(),
            created_at: 1_795_296_882,
            additional_attributes: Some(AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: true,
            }),
            ..plain()
        };
        let mut out = String::new();
        entry(&mut out, &full);
        assert_eq!(
            out,
            "\
Entry ID                : (none)
SPIFFE ID               : spiffe://example.org/a
Parent ID               : spiffe://example.org/node
Revision                : 3
Downstream              : true
X509-SVID TTL           : 60
JWT-SVID TTL            : 61
Expiration time         : 2096-10-02 07:06:40 +0000 UTC
Selector                : unix:gid:2
Selector                : unix:uid:1
FederatesWith           : bar.org
FederatesWith           : foo.org
DNS name                : a.b
DNS name                : c.d
Admin                   : true
StoreSvid               : true
Hint                    : h\"<>é
DisableX509SvidPrefetch : true
JwtSvidIncludeJti       : true

"
        );
    }

    #[test]
    fn entries_are_sorted_as_spire_sorts_them() {
        let make = |name: &str, path: &str, parent: &str, ttl: i32, values: &[&str]| Entry {
            id: name.into(),
            spiffe_id: id(path),
            parent_id: id(parent),
            x509_svid_ttl: ttl,
            selectors: values.iter().map(|value| selector(value)).collect(),
            ..Entry::default()
        };
        let mut entries = [
            make("7", "/b", "/a", 0, &["a"]),
            make("6", "/a", "/b", 5, &["a"]),
            make("5", "/a", "/b", 0, &["b", "a"]),
            make("4", "/a", "/b", 0, &["c"]),
            make("3", "/a", "/b", 0, &["b"]),
            make("2", "/a", "/a", 9, &["z"]),
            make("1", "/Z", "/z", 9, &["z"]),
        ];
        sort(&mut entries);
        assert_eq!(entries.each_ref().map(|entry| entry.id.as_str()), ["1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(entries[4].selectors, [selector("a"), selector("b")]);
    }
}
