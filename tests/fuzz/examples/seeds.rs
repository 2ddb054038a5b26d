//! Writes the binary seeds: `cargo run --example seeds`, in this folder. Their sources are requests as JSON, below, and
//! the fixtures of `identity/tests/data`. The seeds of text targets are written by hand.

use std::fs;
use std::path::Path;

use finial_identity::bundle::document::certificates_from_pem;
use finial_proto::json::from_json;
use finial_proto::spire::api::server::agent::v1::AttestAgentRequest;
use finial_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchUpdateEntryRequest, ListEntriesRequest, SyncAuthorizedEntriesResponse,
};
use finial_proto::spire::api::server::svid::v1::BatchNewX509svidRequest;
use finial_proto::spire::api::types;
use prost::{Message, Name};
use rustls_pki_types::pem::PemObject;

const ENTRY: &str = r#"{"id":"e1","spiffe_id":{"trust_domain":"example.org","path":"/web"},
  "parent_id":{"trust_domain":"example.org","path":"/spire/agent/join_token/t"},
  "selectors":[{"type":"unix","value":"uid:1000"},{"type":"unix","value":"gid:1000"}],
  "x509_svid_ttl":60,"federates_with":["other.org"],"dns_names":["web.example.org","*.example.org"],
  "expires_at":"2000000000","hint":"h","revision_number":"3","additional_attributes":{"disable_x509_svid_prefetch":true}}"#;

fn main() {
    let bundle = types_bundle();
    let create = json::<BatchCreateEntryRequest>(&format!(
        r#"{{"entries":[{ENTRY}],"output_mask":{{"spiffe_id":true}}}}"#
    ));
    let update = json::<BatchUpdateEntryRequest>(&format!(
        r#"{{"entries":[{ENTRY}],"input_mask":{{"selectors":true,"dns_names":true,"spiffe_id":true}}}}"#
    ));
    let list = r#"{"filter":{"by_selectors":{"match":"MATCH_ANY","selectors":[{"type":"unix","value":"uid:1"}]}},"page_size":5}"#;
    let attest = r#"{"params":{"data":{"type":"join_token","payload":"dA=="},"params":{"csr":"MAA="}}}"#;
    let sign = r#"{"params":[{"entry_id":"e1","csr":"MAA="}]}"#;

    write("entries", "create", &create);
    write("entries", "update", &update);
    write("entries", "bundle", &bundle);
    write(
        "answers",
        "entries",
        &json::<SyncAuthorizedEntriesResponse>(&format!(r#"{{"entries":[{ENTRY}]}}"#)),
    );
    write("answers", "bundle", &bundle);
    // The first byte is the message's place in the target's table.
    for (name, place, message) in [
        ("create_entry", 0, create),
        ("update_entry", 1, update),
        ("list_entries", 4, json::<ListEntriesRequest>(list)),
        ("attest_agent", 13, json::<AttestAgentRequest>(attest)),
        ("new_svid", 31, json::<BatchNewX509svidRequest>(sign)),
    ] {
        write("requests", name, &[&[place], message.as_slice()].concat());
    }

    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../identity/tests/data");
    for name in ["p256_sha256", "ed25519", "pss_sha256", "rsa_sha256", "two_uris"] {
        let pem = fs::read(data.join(format!("csr/{name}.pem"))).expect("a fixture");
        let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(&pem).expect("a request");
        write("csr", name, &der);
    }
    for name in ["bundle", "svid"] {
        let pem = fs::read(data.join(format!("{name}.pem"))).expect("a fixture");
        let chain: Vec<u8> =
            certificates_from_pem(&pem).expect("certificates").iter().flat_map(|c| c.to_vec()).collect();
        write("certificates", name, &chain);
    }

    // Pieces of 3 bytes; SETTINGS; HEADERS (END_HEADERS, stream 1) of gRPC's C core: a socket's path as `:authority`.
    let mut headers = vec![0x83, 0x86, 0x44, 2, b'/', b'x', 0x41, 9];
    headers.extend_from_slice(b"/tmp/sock");
    let frame = |kind, flags, stream, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let start = frame(4, 0, 0, &[]);
    write("authority_repair", "path", &[&[3], start.as_slice(), &frame(1, 4, 1, &headers)].concat());
    let (first, second) = headers.split_at(5);
    let padded = [&[2_u8], first, &[0, 0]].concat();
    let split = [&[9], start.as_slice(), &frame(1, 8, 1, &padded), &frame(9, 4, 1, second)].concat();
    write("authority_repair", "continued", &split);
    let good = [0x82, 0x84, 0x86, 0x41, 0x86, 0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09];
    write("authority_repair", "huffman", &[&[0], start.as_slice(), &frame(1, 5, 1, &good)].concat());
}

fn types_bundle() -> Vec<u8> {
    let pem = include_bytes!("../../../identity/tests/data/bundle.pem");
    let authority = certificates_from_pem(pem).expect("certificates").remove(0);
    let bundle = types::Bundle {
        trust_domain: "example.org".to_owned(),
        x509_authorities: vec![types::X509Certificate { asn1: authority.to_vec(), tainted: false }],
        refresh_hint: 300,
        sequence_number: 1,
        ..types::Bundle::default()
    };
    bundle.encode_to_vec()
}

fn json<M: Message + Name + Default>(text: &str) -> Vec<u8> {
    from_json::<M>(text).expect("a message").encode_to_vec()
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder).expect("a folder for seeds");
    fs::write(folder.join(name), bytes).expect("a seed");
}
