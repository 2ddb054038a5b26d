//! `spire.api.server.svid.v1.SVID`: SVIDs for workloads, operators and nested servers.

mod wit;

use std::sync::OnceLock;
use std::time::Duration;

use finial_daemon::clock::unix_seconds;
use finial_identity::csr::{CsrError, VerifiedCsr};
use finial_identity::entry::{dns_name, no_wildcard_overlap};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use finial_proto::spire::api::server::svid::v1 as wire;
use finial_proto::spire::api::server::svid::v1::svid_server::Svid;
use finial_proto::spire::api::types;
use tonic::{Code, Request, Response, Status};

use crate::access::audit::Subject;
use crate::api::convert;
use crate::api::gate::Call;
use crate::api::status::{self, Refusal};
use crate::authority::chain::at;
use crate::authority::issue::{IssueError, IssuedJwt, Issuer};
use crate::authority::profile::{MintIntent, MintJwtIntent, ProfileError};
use crate::bundles::own::OwnBundle;
use crate::entries::authorized;
use crate::entries::feed::Feed;
use crate::entries::snapshot::Snapshot;

/// The service.
pub struct Svids {
    pub trust_domain: TrustDomain,
    pub feed: Feed,
    pub issuer: Issuer,
    pub own_bundle: OwnBundle,
    /// The setting `disable_jwt_svids`.
    pub without_jwt: bool,
}

#[tonic::async_trait]
impl Svid for Svids {
    async fn mint_x509svid(
        &self,
        request: Request<wire::MintX509svidRequest>,
    ) -> Result<Response<wire::MintX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::MintX509svidRequest { csr, ttl } = request.into_inner();
        let minted: OnceLock<(SpiffeId, String, String)> = OnceLock::new();
        let subject = || {
            let mut subject = Subject { csr: Some(convert::sha256_hex(&csr)), ..Subject::default() };
            subject.others.add("ttl", ttl);
            if let Some((id, dns_names, expiration)) = minted.get() {
                subject.spiffe_id = Some(id.to_string());
                subject.dns_name = Some(dns_names.clone());
                subject.others.add("expires_at", expiration);
            }
            subject
        };
        let work = async {
            if csr.is_empty() {
                return Err(Refusal::invalid("missing CSR"));
            }
            let csr = VerifiedCsr::from_der(&csr).map_err(|fault| match &fault {
                CsrError::Malformed(_) => Refusal::invalid(&fault.to_string()),
                CsrError::BadSignature(cause) => {
                    Refusal::invalid_because("failed to verify CSR signature", cause)
                }
            })?;
            let id = self.minted_id(&csr)?;
            for name in csr.dns_names() {
                dns_name(name).map_err(|e| Refusal::invalid_because("CSR DNS name is invalid", &e))?;
            }
            no_wildcard_overlap(csr.dns_names()).map_err(|e| {
                Refusal::invalid_because(
                    "CSR DNS name contains a wildcard that covers another non-wildcard name",
                    &e,
                )
            })?;
            let mint = MintIntent { id: id.clone(), dns_names: csr.dns_names().to_vec(), ttl: seconds(ttl) };
            let issued = self.issuer.minted_x509(&call.granted, &csr, mint).await;
            let issued =
                issued.map_err(|e| Refusal::shown(Code::Internal, "failed to sign X509-SVID", &e))?;
            let (dns_name, expiration) =
                (csr.dns_names().join(","), at(unix_seconds(issued.svid.not_after())));
            tracing::debug!(
                spiffe_id = %id,
                dns_name,
                serial_num = issued.svid.serial_decimal(),
                expiration,
                "Signed X509 SVID"
            );
            // Set here only.
            let _ = minted.set((id, dns_name, expiration));
            Ok(wire::MintX509svidResponse { svid: Some(convert::svid(&issued.svid)) })
        };
        call.answer(subject, work).await
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<wire::MintJwtsvidRequest>,
    ) -> Result<Response<wire::MintJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        if self.without_jwt {
            return call.answer(Subject::default, async { Err(jwt_disabled()) }).await;
        }
        let wire::MintJwtsvidRequest { id, audience, ttl } = request.into_inner();
        let id = convert::read_workload(id, &self.trust_domain);
        let mut subject =
            Subject { spiffe_id: id.as_ref().ok().map(SpiffeId::to_string), ..Subject::default() };
        subject.others.add("ttl", ttl);
        if !audience.is_empty() {
            subject.others.add("audience", audience.join(","));
        }
        let work = async {
            let id = id.map_err(|e| Refusal::invalid_because("invalid SPIFFE ID", &e))?;
            let mint = MintJwtIntent { id, audience: audience.clone(), ttl: seconds(ttl) };
            let issued = self.issuer.minted_jwt(&call.granted, mint).await;
            let issued = issued.map_err(|error| {
                wrong_audience(&error).unwrap_or_else(|| Refusal::shown(Code::Internal, NO_JWT, &error))
            })?;
            Ok(wire::MintJwtsvidResponse { svid: Some(signed_jwt(issued, &audience)) })
        };
        call.answer(|| subject, work).await
    }

    async fn mint_witsvid(
        &self,
        request: Request<wire::MintWitsvidRequest>,
    ) -> Result<Response<wire::MintWitsvidResponse>, Status> {
        let call = Call::of(&request)?;
        call.answer(Subject::default, async { Err(wit::disabled()) }).await
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<wire::BatchNewX509svidRequest>,
    ) -> Result<Response<wire::BatchNewX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let params = request.into_inner().params;
        let agent_id = match self.admit_batch(&call, params.len()).await {
            Ok(agent_id) => agent_id,
            Err(refusal) => return call.answer(Subject::default, async { Err(refusal) }).await,
        };
        let snapshot = self.feed.snapshot();
        let mut results = Vec::with_capacity(params.len());
        for one in params {
            let (status, svid) = match self.new_x509(&snapshot, &agent_id, &one).await {
                Ok(svid) => (status::ok(), Some(svid)),
                Err(refusal) => {
                    let entry = snapshot.entry(&one.entry_id);
                    let subject = Subject {
                        entry_id: Some(one.entry_id.clone()),
                        spiffe_id: entry.map(|entry| entry.spiffe_id.to_string()),
                        ..Subject::default()
                    };
                    (refusal.about(&subject).into(), None)
                }
            };
            call.audit_item(&status, || Subject {
                entry_id: Some(one.entry_id),
                spiffe_id: svid.as_ref().and_then(|svid| svid.id.as_ref()).map(convert::id_text),
                csr: Some(convert::sha256_hex(&one.csr)),
                expires_at: svid.as_ref().map(|svid| svid.expires_at),
                ..Subject::default()
            });
            results.push(wire::batch_new_x509svid_response::Result { status: Some(status), svid });
            // Signing is work for the processor: others get their turn between two certificates.
            tokio::task::yield_now().await;
        }
        Ok(Response::new(wire::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<wire::NewJwtsvidRequest>,
    ) -> Result<Response<wire::NewJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::NewJwtsvidRequest { entry_id, audience } = request.into_inner();
        let (found, signed) = (OnceLock::<SpiffeId>::new(), OnceLock::<i32>::new());
        let subject = || {
            let mut subject = Subject { entry_id: Some(entry_id.clone()), ..Subject::default() };
            subject.others.add("audience", audience.join(","));
            subject.spiffe_id = found.get().map(SpiffeId::to_string);
            if let Some(ttl) = signed.get() {
                subject.others.add("ttl", ttl);
            }
            subject
        };
        let work = async {
            call.limit(1, "rejecting request due to JWT signing request rate limiting").await?;
            if self.without_jwt {
                return Err(jwt_disabled());
            }
            let authorized = authorized::one_for_agent(&self.feed.snapshot(), &call.agent_id()?, &entry_id)
                .ok_or_else(|| Refusal::not_found("entry not found or not authorized"))?;
            // Both cells are set here only.
            let _ = found.set(authorized.entry().spiffe_id.clone());
            let issued = self.issuer.workload_jwt(&authorized, audience.clone()).await;
            let issued = issued.map_err(|error| {
                wrong_audience(&error).unwrap_or_else(|| Refusal::internal(NO_JWT, &error))
            })?;
            let _ = signed.set(authorized.entry().jwt_svid_ttl);
            Ok(wire::NewJwtsvidResponse { svid: Some(signed_jwt(issued, &audience)) })
        };
        call.answer(subject, work).await
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<wire::BatchNewWitsvidRequest>,
    ) -> Result<Response<wire::BatchNewWitsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let params = request.into_inner().params;
        let agent_id = match self.admit_batch(&call, params.len()).await {
            Ok(agent_id) => agent_id,
            Err(refusal) => return call.answer(Subject::default, async { Err(refusal) }).await,
        };
        let snapshot = self.feed.snapshot();
        let results = params.into_iter().map(|one| {
            let status = wit::refuse_new(&snapshot, &agent_id, &one).into();
            let subject = || Subject { entry_id: Some(one.entry_id), ..Subject::default() };
            call.audit_item(&status, subject);
            wire::batch_new_witsvid_response::Result { status: Some(status), svid: None }
        });
        Ok(Response::new(wire::BatchNewWitsvidResponse { results: results.collect() }))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<wire::NewDownstreamX509caRequest>,
    ) -> Result<Response<wire::NewDownstreamX509caResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::NewDownstreamX509caRequest { csr, preferred_ttl } = request.into_inner();
        let subject = || Subject {
            csr: Some(convert::sha256_hex(&csr)),
            trust_domain_id: Some(self.trust_domain.id().to_string()),
            ..Subject::default()
        };
        let work = async {
            call.limit(1, "rejecting request due to downstream CA signing rate limit").await?;
            let csr = VerifiedCsr::from_der(&csr).map_err(|fault| Refusal::invalid(&fault.to_string()))?;
            let issued = self.issuer.downstream_ca(&call.granted, &csr, seconds(preferred_ttl)).await;
            let issued = issued.map_err(|e| Refusal::internal("failed to sign downstream X.509 CA", &e))?;
            let bundle = self.own_bundle.current();
            Ok(wire::NewDownstreamX509caResponse {
                ca_cert_chain: issued.chain.iter().map(|der| der.to_vec()).collect(),
                x509_authorities: bundle.x509_authorities.iter().map(|a| a.der.clone()).collect(),
            })
        };
        call.answer(subject, work).await
    }
}

impl Svids {
    async fn admit_batch(&self, call: &Call, size: usize) -> Result<SpiffeId, Refusal> {
        if size == 0 {
            return Err(Refusal::invalid("missing parameters"));
        }
        call.limit(size, "rejecting request due to certificate signing rate limiting").await?;
        call.agent_id()
    }

    /// Only the key of the CSR is used; what the certificate says comes from the entry.
    async fn new_x509(
        &self,
        snapshot: &Snapshot,
        agent_id: &SpiffeId,
        params: &wire::NewX509svidParams,
    ) -> Result<types::X509svid, Refusal> {
        if params.entry_id.is_empty() {
            return Err(Refusal::invalid("missing entry ID"));
        }
        if params.csr.is_empty() {
            return Err(Refusal::invalid("missing CSR"));
        }
        let authorized = authorized::one_for_agent(snapshot, agent_id, &params.entry_id)
            .ok_or_else(|| Refusal::not_found("entry not found or not authorized"))?;
        let csr = VerifiedCsr::from_der(&params.csr).map_err(|fault| Refusal::invalid(&fault.to_string()))?;
        let issued = self.issuer.workload_x509(&authorized, &csr).await;
        let issued = issued.map_err(|error| Refusal::internal("failed to sign X509-SVID", &error))?;
        tracing::debug!(
            entry_id = params.entry_id,
            spiffe_id = %issued.svid.id(),
            serial_num = issued.svid.serial_decimal(),
            revision_number = authorized.entry().revision_number,
            expiration = at(unix_seconds(issued.svid.not_after())),
            "Signed X509 SVID"
        );
        Ok(convert::svid(&issued.svid))
    }

    fn minted_id(&self, csr: &VerifiedCsr) -> Result<SpiffeId, Refusal> {
        const WHAT: &str = "CSR URI SAN is invalid";
        let uri = match csr.uris() {
            [] => return Err(Refusal::invalid("CSR URI SAN is required")),
            [uri] => uri,
            _ => return Err(Refusal::invalid("only one URI SAN is expected")),
        };
        let id = SpiffeId::parse(uri).map_err(|e| Refusal::invalid_because(WHAT, &e))?;
        id.workload_in(&self.trust_domain).map_err(|e| Refusal::invalid_because(WHAT, &e))?;
        Ok(id)
    }
}

/// What is said when a token could not be signed.
const NO_JWT: &str = "failed to sign JWT-SVID";

fn jwt_disabled() -> Refusal {
    Refusal::with_code(Code::Unimplemented, "JWT functionality is disabled")
}

/// What lies with the caller. SPIRE answers so to an empty list, and INTERNAL to a list of empty texts.
fn wrong_audience(error: &IssueError) -> Option<Refusal> {
    match error {
        IssueError::Profile(fault @ (ProfileError::NoAudience | ProfileError::LongAudience)) => {
            Some(Refusal::invalid(&fault.to_string()))
        }
        _ => None,
    }
}

fn signed_jwt(issued: IssuedJwt, audience: &[String]) -> types::Jwtsvid {
    tracing::debug!(
        spiffe_id = %issued.id,
        audience = format!("[{}]", audience.join(" ")),
        expiration = at(issued.expires_at),
        "Server CA successfully signed JWT SVID"
    );
    types::Jwtsvid {
        token: issued.token,
        id: Some(convert::id(&issued.id)),
        expires_at: issued.expires_at,
        issued_at: issued.issued_at,
        hint: String::new(),
    }
}

/// A lifetime; nothing positive means the default.
fn seconds(ttl: i32) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}
