use finial_proto::spire::api::server::bundle::v1 as wire;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;

use super::*;
use crate::access::fixture::Authority;

fn root(td: &str) -> types::X509Certificate {
    let asn1 = Authority::new(td).bundle().x509_authorities.remove(0).der;
    types::X509Certificate { asn1, tainted: false }
}

fn jwt_key(key_id: &str) -> types::JwtKey {
    let public_key = WorkloadKey::generate(KeyType::EcP256).unwrap().public_key_der().to_vec();
    types::JwtKey { public_key, key_id: key_id.into(), expires_at: 7, tainted: false }
}

pub(super) fn bundle(td: &str) -> types::Bundle {
    types::Bundle {
        trust_domain: td.into(),
        x509_authorities: vec![root("other.org")],
        jwt_authorities: vec![jwt_key("k")],
        refresh_hint: 60,
        sequence_number: 4,
        wit_authorities: vec![],
    }
}

#[tokio::test(start_paused = true)]
async fn the_own_bundle_is_open_to_anyone_and_grows() {
    let server = Server::start().await;
    let mut anyone = BundleClient::new(server.anonymous());
    let own = anyone.get_bundle(wire::GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(
        (own.trust_domain.as_str(), own.x509_authorities.len(), own.refresh_hint),
        ("example.org", 1, 0)
    );
    let mask = types::BundleMask { sequence_number: true, ..Default::default() };
    let masked =
        anyone.get_bundle(wire::GetBundleRequest { output_mask: Some(mask) }).await.unwrap().into_inner();
    let expected = types::Bundle {
        trust_domain: "example.org".into(),
        sequence_number: own.sequence_number,
        ..Default::default()
    };
    assert_eq!(masked, expected);

    let append = |x509_authorities, jwt_authorities| wire::AppendBundleRequest {
        x509_authorities,
        jwt_authorities,
        ..Default::default()
    };
    let tainted = types::X509Certificate { tainted: true, ..root("example.org") };
    let grown = server
        .bundles()
        .append_bundle(append(vec![tainted.clone()], vec![jwt_key("k")]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((grown.x509_authorities.len(), grown.jwt_authorities.len()), (2, 2));
    assert!(!grown.x509_authorities[1].tainted, "taints are not the caller's to set");
    assert_eq!(grown.sequence_number, own.sequence_number + 1);
    assert_eq!(anyone.get_bundle(wire::GetBundleRequest::default()).await.unwrap().into_inner(), grown);
    let again = server.bundles().append_bundle(append(vec![tainted], vec![])).await.unwrap().into_inner();
    assert_eq!(again, grown, "nothing new");

    for (request, start) in [
        (append(vec![], vec![]), "no authorities to append"),
        (
            append(vec![types::X509Certificate { asn1: vec![1], tainted: false }], vec![]),
            "failed to convert X.509 authority: ",
        ),
        (
            append(vec![], vec![types::JwtKey { key_id: String::new(), ..jwt_key("") }]),
            "failed to convert JWT authority: missing key ID",
        ),
        (
            append(vec![], vec![types::JwtKey { public_key: vec![1], ..jwt_key("x") }]),
            "failed to convert JWT authority: ",
        ),
    ] {
        assert_refused_with(server.bundles().append_bundle(request).await, Code::InvalidArgument, start);
    }
}

#[tokio::test(start_paused = true)]
async fn federated_bundles_live_their_life() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let mut client = server.bundles();
    let create = wire::BatchCreateFederatedBundleRequest {
        bundle: vec![bundle("spiffe://other.org"), bundle("other.org")],
        output_mask: None,
    };
    let results = client.batch_create_federated_bundle(create).await.unwrap().into_inner().results;
    let stored = results[0].bundle.clone().unwrap();
    assert_eq!(stored.trust_domain, "other.org");
    assert_eq!((stored.refresh_hint, stored.sequence_number), (60, 4));
    let status = results[1].status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (6, "bundle already exists"));

    let get = |td: &str| wire::GetFederatedBundleRequest { trust_domain: td.into(), output_mask: None };
    let mut of_agent = BundleClient::new(agent.channel.clone());
    assert_eq!(of_agent.get_federated_bundle(get("other.org")).await.unwrap().into_inner(), stored);
    assert_refused(of_agent.get_federated_bundle(get("third.org")).await, Code::NotFound, "bundle not found");
    let own = "getting a federated bundle for the server's own trust domain is not allowed";
    assert_refused(of_agent.get_federated_bundle(get("example.org")).await, Code::InvalidArgument, own);
    assert_refused_with(
        of_agent.get_federated_bundle(get("")).await,
        Code::InvalidArgument,
        "trust domain argument is not valid: ",
    );

    let mask = types::BundleMask { refresh_hint: true, ..Default::default() };
    let update = |bundle, input_mask| wire::BatchUpdateFederatedBundleRequest {
        bundle: vec![bundle],
        input_mask,
        output_mask: None,
    };
    let changed = types::Bundle { refresh_hint: 61, ..bundle("other.org") };
    let results =
        client.batch_update_federated_bundle(update(changed, Some(mask))).await.unwrap().into_inner().results;
    assert_eq!(results[0].bundle.clone().unwrap(), types::Bundle { refresh_hint: 61, ..stored });
    let results = client
        .batch_update_federated_bundle(update(bundle("third.org"), None))
        .await
        .unwrap()
        .into_inner()
        .results;
    let status = results[0].status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (5, "bundle not found"));

    let broken = types::Bundle {
        x509_authorities: vec![types::X509Certificate { asn1: vec![9], tainted: false }],
        ..bundle("third.org")
    };
    let set = wire::BatchSetFederatedBundleRequest {
        bundle: vec![bundle("third.org"), bundle("example.org"), broken],
        output_mask: None,
    };
    let results = client.batch_set_federated_bundle(set).await.unwrap().into_inner().results;
    let texts: Vec<_> = results.iter().map(|r| r.status.as_ref().unwrap().message.as_str()).collect();
    assert_eq!(
        texts[..2],
        ["OK", "setting a federated bundle for the server's own trust domain is not allowed"]
    );
    assert!(
        texts[2].starts_with("failed to convert bundle: unable to parse X.509 authority: "),
        "{}",
        texts[2]
    );

    assert_eq!(client.count_bundles(wire::CountBundlesRequest {}).await.unwrap().into_inner().count, 3);
    let list = client
        .list_federated_bundles(wire::ListFederatedBundlesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = list.bundles.iter().map(|b| b.trust_domain.as_str()).collect();
    assert_eq!(names, ["other.org", "third.org"]);

    server
        .create(vec![types::Entry {
            federates_with: vec!["other.org".into()],
            ..entry("/spire/agent/x", "/w", &["s:1"])
        }])
        .await;
    let delete =
        |td: &str, mode| wire::BatchDeleteFederatedBundleRequest { trust_domains: vec![td.into()], mode };
    for (td, mode, code, text) in [
        (
            "other.org",
            0,
            9,
            "failed to delete federated bundle: datastore-sql: cannot delete bundle; federated with 1 registration entries",
        ),
        ("example.org", 0, 3, "removing the bundle for the server trust domain is not allowed"),
        ("other.org", 2, 0, "OK"),
        ("other.org", 0, 5, "bundle not found"),
    ] {
        let results =
            client.batch_delete_federated_bundle(delete(td, mode)).await.unwrap().into_inner().results;
        let status = results[0].status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (code, text));
        assert_eq!(results[0].trust_domain, td);
    }
    let odd = client.batch_delete_federated_bundle(delete("x", 9)).await;
    assert_refused(odd, Code::InvalidArgument, "failed to parse deletion mode: unhandled delete mode \"9\"");
}
