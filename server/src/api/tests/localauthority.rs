use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::localauthority::v1 as wire;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::spire::api::server::svid::v1 as svid_wire;
use wire::AuthorityState;

use super::*;
use crate::authority::tests::pki::{self, Pki};
use crate::authority::tests::today;

impl Server {
    fn authorities(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.local.clone())
    }

    async fn bundle(&self) -> types::Bundle {
        self.bundles().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner()
    }

    /// The header of a token minted now.
    async fn key_id_in_use(&self) -> String {
        let request = svid_wire::MintJwtsvidRequest {
            id: Some(types::Spiffeid { trust_domain: "example.org".into(), path: "/w".into() }),
            audience: vec!["a".into()],
            ttl: 0,
        };
        let token = self.svids().mint_jwtsvid(request).await.unwrap().into_inner().svid.unwrap().token;
        let token = finial_identity::jwt_svid::UnverifiedJwtSvid::read(&token).unwrap();
        token.key_id().to_owned()
    }
}

/// The calls of both kinds by one shape, so that one table holds for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    X509,
    Jwt,
}

use Kind::{Jwt, X509};

impl Kind {
    /// Active, prepared and old.
    async fn show(self, server: &Server) -> [Option<AuthorityState>; 3] {
        let mut client = server.authorities();
        match self {
            X509 => {
                let answer = client.get_x509_authority_state(wire::GetX509AuthorityStateRequest {}).await;
                let wire::GetX509AuthorityStateResponse { active, prepared, old } =
                    answer.unwrap().into_inner();
                [active, prepared, old]
            }
            Jwt => {
                let answer = client.get_jwt_authority_state(wire::GetJwtAuthorityStateRequest {}).await;
                let wire::GetJwtAuthorityStateResponse { active, prepared, old } =
                    answer.unwrap().into_inner();
                [active, prepared, old]
            }
        }
    }

    async fn prepare(self, server: &Server) -> Result<AuthorityState, Status> {
        let mut client = server.authorities();
        let state = match self {
            X509 => {
                let answer = client.prepare_x509_authority(wire::PrepareX509AuthorityRequest {}).await?;
                answer.into_inner().prepared_authority
            }
            Jwt => {
                let answer = client.prepare_jwt_authority(wire::PrepareJwtAuthorityRequest {}).await?;
                answer.into_inner().prepared_authority
            }
        };
        Ok(state.unwrap())
    }

    async fn activate(self, server: &Server, id: &str) -> Result<AuthorityState, Status> {
        let (mut client, authority_id) = (server.authorities(), id.to_owned());
        let state = match self {
            X509 => {
                let request = wire::ActivateX509AuthorityRequest { authority_id };
                client.activate_x509_authority(request).await?.into_inner().activated_authority
            }
            Jwt => {
                let request = wire::ActivateJwtAuthorityRequest { authority_id };
                client.activate_jwt_authority(request).await?.into_inner().activated_authority
            }
        };
        Ok(state.unwrap())
    }

    async fn taint(self, server: &Server, id: &str) -> Result<AuthorityState, Status> {
        let (mut client, authority_id) = (server.authorities(), id.to_owned());
        let state = match self {
            X509 => {
                let request = wire::TaintX509AuthorityRequest { authority_id };
                client.taint_x509_authority(request).await?.into_inner().tainted_authority
            }
            Jwt => {
                let request = wire::TaintJwtAuthorityRequest { authority_id };
                client.taint_jwt_authority(request).await?.into_inner().tainted_authority
            }
        };
        Ok(state.unwrap())
    }

    async fn revoke(self, server: &Server, id: &str) -> Result<AuthorityState, Status> {
        let (mut client, authority_id) = (server.authorities(), id.to_owned());
        let state = match self {
            X509 => {
                let request = wire::RevokeX509AuthorityRequest { authority_id };
                client.revoke_x509_authority(request).await?.into_inner().revoked_authority
            }
            Jwt => {
                let request = wire::RevokeJwtAuthorityRequest { authority_id };
                client.revoke_jwt_authority(request).await?.into_inner().revoked_authority
            }
        };
        Ok(state.unwrap())
    }

    /// How many authorities of this kind are in the bundle, and how many of them are tainted.
    async fn in_bundle(self, server: &Server) -> (usize, usize) {
        let bundle = server.bundle().await;
        let tainted: Vec<bool> = match self {
            X509 => bundle.x509_authorities.iter().map(|authority| authority.tainted).collect(),
            Jwt => bundle.jwt_authorities.iter().map(|authority| authority.tainted).collect(),
        };
        (tainted.len(), tainted.iter().filter(|tainted| **tainted).count())
    }

    fn name(self) -> &'static str {
        match self {
            X509 => "X.509",
            Jwt => "JWT",
        }
    }
}

fn only(id: &str) -> AuthorityState {
    AuthorityState { authority_id: id.to_owned(), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_by_hand_takes_four_steps() {
    let server = Server::start().await;
    for kind in [X509, Jwt] {
        let [Some(first), None, None] = kind.show(&server).await else { panic!("one signs: {kind:?}") };
        assert_eq!(kind.in_bundle(&server).await, (1, 0));

        let thrown_away = kind.prepare(&server).await.unwrap();
        server.clock.jump(60);
        let second = kind.prepare(&server).await.unwrap();
        assert_ne!(second.authority_id, thrown_away.authority_id);
        assert_eq!(second.expires_at, thrown_away.expires_at + 60);
        assert_eq!(kind.show(&server).await, [Some(first.clone()), Some(second.clone()), None]);
        assert_eq!(kind.in_bundle(&server).await, (3, 0), "what was prepared stays in the bundle");

        assert_eq!(kind.activate(&server, &second.authority_id).await.unwrap(), second);
        assert_eq!(kind.show(&server).await, [Some(second.clone()), None, Some(first.clone())]);
        let signs = match kind {
            X509 => server.handles.issuer.active().unwrap().authority_id().to_owned(),
            Jwt => server.key_id_in_use().await,
        };
        assert_eq!(signs, second.authority_id, "it signs from now on");

        let tainted = kind.taint(&server, &first.authority_id).await.unwrap();
        match kind {
            X509 => assert_eq!(tainted, first),
            Jwt => assert_eq!(tainted, only(&first.authority_id)),
        }
        assert_eq!(kind.in_bundle(&server).await, (3, 1));
        let revoked = kind.revoke(&server, &first.authority_id).await.unwrap();
        assert_eq!(revoked, only(&first.authority_id));
        assert_eq!(kind.in_bundle(&server).await, (2, 0));
        assert_eq!(kind.show(&server).await, [Some(second), None, Some(first)], "as SPIRE shows it");
    }
}

/// What the real program answers, in the same states.
#[tokio::test(start_paused = true)]
async fn refusals_are_spires() {
    let server = Server::start().await;
    for kind in [X509, Jwt] {
        let (invalid, internal) = (Code::InvalidArgument, Code::Internal);
        let [Some(first), ..] = kind.show(&server).await else { panic!("one signs: {kind:?}") };
        let first = first.authority_id;
        let unknown_revoked = match kind {
            X509 => "invalid authority ID: only Old local authority can be revoked",
            Jwt => "invalid authority ID: no JWT authority found with provided authority ID",
        };
        for (id, activated, tainted, revoked) in [
            (
                "",
                "no authority ID provided",
                "no authority ID provided",
                "invalid authority ID: no authority ID provided",
            ),
            ("x", "unexpected authority ID", "unexpected authority ID", unknown_revoked),
            (
                first.as_str(),
                "unexpected authority ID",
                "unable to taint current local authority",
                "invalid authority ID: unable to use current authority",
            ),
        ] {
            assert_refused(kind.activate(&server, id).await, invalid, activated);
            assert_refused(kind.taint(&server, id).await, invalid, tainted);
            assert_refused(kind.revoke(&server, id).await, invalid, revoked);
        }

        let second = kind.prepare(&server).await.unwrap().authority_id;
        let text = "only Old local authorities can be tainted: unsupported local authority status: PREPARED";
        assert_refused(kind.taint(&server, &second).await, invalid, text);
        let text = match kind {
            X509 => "invalid authority ID: only Old local authority can be revoked",
            Jwt => "invalid authority ID: unable to use a prepared key",
        };
        assert_refused(kind.revoke(&server, &second).await, invalid, text);

        kind.activate(&server, &second).await.unwrap();
        let text = "only Prepared authorities can be activated: unsupported local authority status: OLD";
        assert_refused(kind.activate(&server, &first).await, internal, text);
        let (what, name) = (kind.name(), if kind == X509 { "root CA" } else { "key" });
        let (no_such, none_revoked) = match kind {
            X509 => {
                ("no ca found with provided subject key ID", "no root CA found with provided subject key ID")
            }
            Jwt => ("no JWT Key found with provided key ID", "no JWT Key found with provided key ID"),
        };
        let text =
            format!("failed to revoke {what} authority: it is not possible to revoke an untainted {name}");
        assert_refused(kind.revoke(&server, &first).await, internal, &text);
        kind.taint(&server, &first).await.unwrap();
        let text = format!("failed to taint {what} authority: {name} is already tainted");
        assert_refused(kind.taint(&server, &first).await, internal, &text);
        kind.revoke(&server, &first).await.unwrap();
        let text = format!("failed to revoke {what} authority: {none_revoked}");
        assert_refused(kind.revoke(&server, &first).await, internal, &text);
        let text = format!("failed to taint {what} authority: {no_such}");
        assert_refused(kind.taint(&server, &first).await, internal, &text);
    }

    let mut client = server.authorities();
    let text = "upstream authority is not configured";
    let request = wire::TaintX509UpstreamAuthorityRequest { subject_key_id: "ab".into() };
    assert_refused(client.taint_x509_upstream_authority(request).await, Code::FailedPrecondition, text);
    let request = wire::RevokeX509UpstreamAuthorityRequest { subject_key_id: "ab".into() };
    assert_refused(client.revoke_x509_upstream_authority(request).await, Code::FailedPrecondition, text);

    let text = "WIT-SVID functionality is not yet implemented";
    let (code, id) = (Code::Unimplemented, String::new);
    assert_refused(client.get_wit_authority_state(wire::GetWitAuthorityStateRequest {}).await, code, text);
    assert_refused(client.prepare_wit_authority(wire::PrepareWitAuthorityRequest {}).await, code, text);
    let request = wire::ActivateWitAuthorityRequest { authority_id: id() };
    assert_refused(client.activate_wit_authority(request).await, code, text);
    let request = wire::TaintWitAuthorityRequest { authority_id: id() };
    assert_refused(client.taint_wit_authority(request).await, code, text);
    let request = wire::RevokeWitAuthorityRequest { authority_id: id() };
    assert_refused(client.revoke_wit_authority(request).await, code, text);

    let agent = server.agent().await;
    for channel in [server.anonymous(), agent.channel] {
        let request = wire::GetX509AuthorityStateRequest {};
        let refused = LocalAuthorityClient::new(channel).get_x509_authority_state(request).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
}

#[tokio::test(start_paused = true)]
async fn without_jwt_svids_there_is_no_jwt_authority() {
    let server = Server::configured("disable_jwt_svids = true").await;
    let (code, text) = (Code::Unimplemented, "JWT functionality is disabled");
    let shown = server.authorities().get_jwt_authority_state(wire::GetJwtAuthorityStateRequest {}).await;
    assert_refused(shown, code, text);
    assert_refused(Jwt.prepare(&server).await, code, text);
    assert_refused(Jwt.activate(&server, "").await, code, text);
    assert_refused(Jwt.taint(&server, "").await, code, text);
    assert_refused(Jwt.revoke(&server, "").await, code, text);
    assert!(X509.prepare(&server).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn any_servers_jwt_key_may_be_revoked_once_it_is_tainted() {
    let server = Server::start().await;
    let thrown_away = Jwt.prepare(&server).await.unwrap().authority_id;
    Jwt.prepare(&server).await.unwrap();
    let text = "failed to revoke JWT authority: it is not possible to revoke an untainted key";
    assert_refused(Jwt.revoke(&server, &thrown_away).await, Code::Internal, text);
    // Another server of this trust domain taints it past this one.
    let trust_domain = finial_identity::trust_domain::TrustDomain::parse("example.org").unwrap();
    server.handles.store.bundles().taint_jwt(&trust_domain, &thrown_away).await.unwrap();
    Jwt.revoke(&server, &thrown_away).await.unwrap();
    assert_eq!(Jwt.in_bundle(&server).await, (2, 0));
}

/// The operator changes the upstream authority, and drops the one before when nothing hangs on it any more.
#[tokio::test(start_paused = true)]
async fn an_upstream_authority_is_dropped_after_its_successor_signs() {
    let pki = Pki::new();
    pki.root("first", pki::P256, "/O=Big Corp/CN=First", 3650, pki::CA);
    pki.root("second", pki::P256, "/O=Big Corp/CN=Second", 3650, pki::CA);
    let (pem, key) = (pki.path("in-use.pem"), pki.path("in-use.key"));
    let put = |name: &str| {
        std::fs::copy(pki.path(&format!("{name}.pem")), &pem).unwrap();
        std::fs::copy(pki.path(&format!("{name}.key")), &key).unwrap();
    };
    put("first");
    let plugin = format!(
        "UpstreamAuthority \"disk\" {{ plugin_data {{ cert_file_path = {pem:?} key_file_path = {key:?} }} }}"
    );
    let server = Server::with_plugin("", &plugin, today()).await;
    let drop = async |tainting: bool, id: &str| {
        let (mut client, subject_key_id) = (server.authorities(), id.to_owned());
        match tainting {
            true => {
                let request = wire::TaintX509UpstreamAuthorityRequest { subject_key_id };
                let answer = client.taint_x509_upstream_authority(request).await?.into_inner();
                Ok::<_, Status>(answer.upstream_authority_subject_key_id)
            }
            false => {
                let request = wire::RevokeX509UpstreamAuthorityRequest { subject_key_id };
                let answer = client.revoke_x509_upstream_authority(request).await?.into_inner();
                Ok(answer.upstream_authority_subject_key_id)
            }
        }
    };
    let [Some(old), None, None] = X509.show(&server).await else { panic!("one signs") };
    let first = old.upstream_authority_subject_key_id.clone();
    assert_eq!(first.len(), 40, "{old:?}");

    put("second");
    let new = X509.prepare(&server).await.unwrap();
    let second = new.upstream_authority_subject_key_id.clone();
    assert_ne!(first, second);
    let invalid = |what: &str, id: &str, text: &'static str| (what == "taint", id.to_owned(), text);
    let before = [
        invalid("taint", "", "provided subject key id is not valid: no subject key ID provided"),
        invalid("revoke", "", "invalid subject key ID: no subject key ID provided"),
        invalid(
            "taint",
            &first,
            "provided subject key id is not valid: unable to use upstream authority singing current authority",
        ),
        invalid(
            "revoke",
            &second,
            "invalid subject key ID: only upstream authorities signing an old authority can be used",
        ),
        invalid(
            "taint",
            "ab",
            "provided subject key id is not valid: upstream authority didn't sign the old local authority",
        ),
    ];
    for (tainting, id, text) in before {
        assert_refused(drop(tainting, &id).await, Code::InvalidArgument, text);
    }
    X509.activate(&server, &new.authority_id).await.unwrap();

    let failed = Code::FailedPrecondition;
    let text = "local authority can't be tainted if there is an upstream authority";
    assert_refused(X509.taint(&server, &old.authority_id).await, failed, text);
    let text = "local authority can't be revoked if there is an upstream authority";
    assert_refused(X509.revoke(&server, &old.authority_id).await, failed, text);

    let text = "failed to revoke X.509 upstream authority: it is not possible to revoke an untainted root CA";
    assert_refused(drop(false, &first).await, Code::Internal, text);
    assert_eq!(drop(true, &first.to_uppercase()).await.unwrap(), first);
    let text = "failed to taint upstream authority: root CA is already tainted";
    assert_refused(drop(true, &first).await, Code::Internal, text);
    assert_eq!(X509.in_bundle(&server).await, (2, 1));
    server.clock.sleep(Duration::from_secs(1)).await;
    let own = server.handles.server_svid.borrow().authority_id.clone();
    assert_eq!(own, new.authority_id, "the server's own SVID hangs on the new one at once");
    assert_eq!(drop(false, &first).await.unwrap(), first);
    assert_eq!(X509.in_bundle(&server).await, (1, 0));
}
