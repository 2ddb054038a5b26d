//! The names of certificates, for people.

use der::Decode;
use der::asn1::ObjectIdentifier;
use x509_cert::name::Name;

/// A distinguished name (DER) as Go prints it: the last part first, short names in capitals. Empty when it is none.
pub(crate) fn text(der: &[u8]) -> String {
    Name::from_der(der).map(|name| of_name(&name)).unwrap_or_default()
}

fn of_name(name: &Name) -> String {
    let parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes: Vec<String> = rdn
                .iter()
                .map(|attribute| {
                    let value = String::from_utf8_lossy(attribute.value.value());
                    format!("{}={}", short_name(&attribute.oid), escaped(&value))
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn short_name(oid: &ObjectIdentifier) -> String {
    let text = oid.to_string();
    let short = match text.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "SERIALNUMBER",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.17" => "POSTALCODE",
        _ => return text,
    };
    short.to_owned()
}

fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let special = match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            ' ' => i == 0 || i == last,
            '#' => i == 0,
            _ => false,
        };
        if special {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn names_look_like_gos() {
        let name = Name::from_str("serialNumber=17,O=SPIFFE\\, Inc,C=US").unwrap();
        assert_eq!(of_name(&name), "SERIALNUMBER=17,O=SPIFFE\\, Inc,C=US");
        assert_eq!(escaped("#a b "), "\\#a b\\ ");
    }
}
