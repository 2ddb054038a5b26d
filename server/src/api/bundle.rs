//! `spire.api.server.bundle.v1.Bundle`: the own trust bundle and those of other trust domains.

use finial_identity::bundle::Bundle as TrustBundle;
use finial_identity::trust_domain::TrustDomain;
use finial_proto::spire::api::server::bundle::v1 as wire;
use finial_proto::spire::api::server::bundle::v1::bundle_server::Bundle;
use finial_proto::spire::api::types;
use tonic::{Code, Request, Response, Status};

use crate::access::audit::{Others, Subject};
use crate::api::convert::{self, BundleFault};
use crate::api::gate::Call;
use crate::api::status::{self, Refusal};
use crate::bundles::federated::FederatedBundles;
use crate::bundles::own::OwnBundle;
use crate::entries::feed::Feed;
use crate::store::bundles::{BundleUpdate, DeleteMode};
use crate::store::{Store, StoreError};

/// The service.
#[derive(Clone)]
pub struct Bundles {
    pub trust_domain: TrustDomain,
    pub store: Store,
    pub feed: Feed,
    pub own: OwnBundle,
    pub federated: FederatedBundles,
}

#[tonic::async_trait]
impl Bundle for Bundles {
    async fn count_bundles(
        &self,
        request: Request<wire::CountBundlesRequest>,
    ) -> Result<Response<wire::CountBundlesResponse>, Status> {
        let call = Call::of(&request)?;
        let work = async {
            let count = self.store.bundles().count().await;
            let count = count.map_err(|e| Refusal::shown(Code::Internal, "failed to count bundles", &e))?;
            Ok(wire::CountBundlesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
        };
        call.answer(Subject::default, work).await
    }

    async fn get_bundle(
        &self,
        request: Request<wire::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let mask = request.into_inner().output_mask;
        let work = async { Ok(convert::bundle(&self.own.current(), mask.as_ref())) };
        call.answer(|| about(self.trust_domain.name()), work).await
    }

    async fn append_bundle(
        &self,
        request: Request<wire::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let wire::AppendBundleRequest { x509_authorities, jwt_authorities, output_mask, .. } =
            request.into_inner();
        let subject = authorities_subject(&x509_authorities, &jwt_authorities);
        let work = async {
            if x509_authorities.is_empty() && jwt_authorities.is_empty() {
                return Err(Refusal::invalid("no authorities to append"));
            }
            let jwt_authorities = convert::read_jwt_authorities(&jwt_authorities)
                .map_err(|e| Refusal::invalid_because("failed to convert JWT authority", &e))?;
            let x509_authorities = convert::read_x509_authorities(&x509_authorities)
                .map_err(|e| Refusal::invalid_because("failed to convert X.509 authority", &e))?;
            let addition = TrustBundle {
                x509_authorities,
                jwt_authorities,
                ..TrustBundle::new(self.trust_domain.clone())
            };
            let bundle = self.append(addition).await;
            let bundle = bundle.map_err(|e| Refusal::shown(Code::Internal, "failed to append bundle", &e))?;
            Ok(convert::bundle(&bundle, output_mask.as_ref()))
        };
        call.answer(|| subject, work).await
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<wire::PublishJwtAuthorityRequest>,
    ) -> Result<Response<wire::PublishJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let key = request.into_inner().jwt_authority;
        let mut subject = Subject::default();
        if let Some(key) = &key {
            add_jwt_key(&mut subject.others, "", key, "");
        }
        let work = async {
            call.limit(1, "rejecting request due to key publishing rate limiting").await?;
            let key = key.ok_or_else(|| Refusal::invalid("missing JWT authority"))?;
            let jwt_authorities = convert::read_jwt_authorities(&[key])
                .map_err(|e| Refusal::invalid_because("invalid JWT authority", &e))?;
            let addition = TrustBundle { jwt_authorities, ..TrustBundle::new(self.trust_domain.clone()) };
            let bundle = self.append(addition).await;
            let bundle = bundle.map_err(|e| Refusal::internal("failed to publish JWT key", &e))?;
            Ok(wire::PublishJwtAuthorityResponse {
                jwt_authorities: convert::jwt_keys(&bundle.jwt_authorities),
            })
        };
        call.answer(|| subject, work).await
    }

    async fn publish_wit_authority(
        &self,
        request: Request<wire::PublishWitAuthorityRequest>,
    ) -> Result<Response<wire::PublishWitAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let refused =
            || Refusal::with_code(Code::Unimplemented, "WIT-SVID functionality is not yet implemented");
        call.answer(Subject::default, async { Err(refused()) }).await
    }

    async fn list_federated_bundles(
        &self,
        request: Request<wire::ListFederatedBundlesRequest>,
    ) -> Result<Response<wire::ListFederatedBundlesResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::ListFederatedBundlesRequest { output_mask, page_size, page_token } = request.into_inner();
        let work = async {
            let page = convert::read_page(page_size, page_token);
            let page = self.store.bundles().list(page.as_ref()).await;
            let page = page.map_err(|e| Refusal::shown(Code::Internal, "failed to list bundles", &e))?;
            // A page that held the own bundle is shorter by one, as in SPIRE.
            let others = page.items.iter().filter(|bundle| bundle.trust_domain != self.trust_domain);
            let bundles = others.map(|bundle| convert::bundle(bundle, output_mask.as_ref())).collect();
            Ok(wire::ListFederatedBundlesResponse { bundles, next_page_token: page.next_token })
        };
        call.answer(Subject::default, work).await
    }

    async fn get_federated_bundle(
        &self,
        request: Request<wire::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let wire::GetFederatedBundleRequest { trust_domain, output_mask } = request.into_inner();
        let work = async {
            let trust_domain = self.read_foreign(
                &trust_domain,
                "getting a federated bundle for the server's own trust domain is not allowed",
            )?;
            let bundle = match self.store.bundles().get(&trust_domain).await {
                // Agents ask for it in each of their rounds, and it is in memory.
                Err(error) if error.is_outage() => match self.federated.get(&trust_domain) {
                    Some(known) => Ok(Some((*known).clone())),
                    None => Err(error),
                },
                read => read,
            };
            let bundle = bundle.map_err(|e| Refusal::internal("failed to fetch bundle", &e))?;
            let bundle = bundle.ok_or_else(|| Refusal::not_found("bundle not found"))?;
            Ok(convert::bundle(&bundle, output_mask.as_ref()))
        };
        call.answer(|| about(&trust_domain), work).await
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<wire::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchCreateFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchCreateFederatedBundleRequest { bundle, output_mask } = request.into_inner();
        let mut results = Vec::with_capacity(bundle.len());
        for one in &bundle {
            let (status, bundle) = outcome(
                self.create(one).await.map_err(|refusal| refusal.about(&bundle_subject(one, None))),
                output_mask.as_ref(),
            );
            call.audit_item(&status, || bundle_subject(one, None));
            results
                .push(wire::batch_create_federated_bundle_response::Result { status: Some(status), bundle });
        }
        self.written().await;
        Ok(Response::new(wire::BatchCreateFederatedBundleResponse { results }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<wire::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchUpdateFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchUpdateFederatedBundleRequest { bundle, input_mask, output_mask } =
            request.into_inner();
        let mut results = Vec::with_capacity(bundle.len());
        for one in &bundle {
            let updated = self.update(one, input_mask.as_ref()).await;
            let updated = updated.map_err(|refusal| refusal.about(&bundle_subject(one, input_mask.as_ref())));
            let (status, bundle) = outcome(updated, output_mask.as_ref());
            call.audit_item(&status, || bundle_subject(one, input_mask.as_ref()));
            results
                .push(wire::batch_update_federated_bundle_response::Result { status: Some(status), bundle });
        }
        self.written().await;
        Ok(Response::new(wire::BatchUpdateFederatedBundleResponse { results }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<wire::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchSetFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchSetFederatedBundleRequest { bundle, output_mask } = request.into_inner();
        let mut results = Vec::with_capacity(bundle.len());
        for one in &bundle {
            let (status, bundle) = outcome(
                self.set(one).await.map_err(|refusal| refusal.about(&bundle_subject(one, None))),
                output_mask.as_ref(),
            );
            call.audit_item(&status, || bundle_subject(one, None));
            results.push(wire::batch_set_federated_bundle_response::Result { status: Some(status), bundle });
        }
        self.written().await;
        Ok(Response::new(wire::BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<wire::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchDeleteFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchDeleteFederatedBundleRequest { trust_domains, mode } = request.into_inner();
        let mode_name = wire::batch_delete_federated_bundle_request::Mode::try_from(mode)
            .map_or("", |mode| mode.as_str_name());
        let Some(mode) = DeleteMode::from_number(mode) else {
            let text = format!("failed to parse deletion mode: unhandled delete mode \"{mode}\"");
            return call.answer(Subject::default, async { Err(Refusal::invalid(&text)) }).await;
        };
        let mut results = Vec::with_capacity(trust_domains.len());
        for trust_domain in trust_domains {
            let status = match self.delete(&trust_domain, mode).await {
                Ok(()) => status::ok(),
                Err(refusal) => refusal.about(&about(&trust_domain)).into(),
            };
            call.audit_item(&status, || {
                let mut subject = about(&trust_domain);
                subject.others.add("mode", mode_name);
                subject
            });
            results.push(wire::batch_delete_federated_bundle_response::Result {
                status: Some(status),
                trust_domain,
            });
        }
        self.written().await;
        Ok(Response::new(wire::BatchDeleteFederatedBundleResponse { results }))
    }
}

impl Bundles {
    /// Adds to the own bundle and shows it.
    async fn append(&self, addition: TrustBundle) -> Result<TrustBundle, StoreError> {
        let bundle = self.store.bundles().append(addition).await?;
        self.own.refresh().await?;
        Ok(bundle)
    }

    async fn create(&self, bundle: &types::Bundle) -> Result<TrustBundle, Refusal> {
        let bundle = self
            .read(bundle, "creating a federated bundle for the server's own trust domain is not allowed")?;
        let created = self.store.bundles().create(bundle).await.map_err(|error| match error {
            StoreError::AlreadyExists(_) => Refusal::with_code(Code::AlreadyExists, "bundle already exists"),
            error => Refusal::shown(Code::Internal, "unable to create bundle", &error),
        })?;
        tracing::debug!(trust_domain_id = %created.trust_domain.id(), "Federated bundle created");
        Ok(created)
    }

    async fn set(&self, bundle: &types::Bundle) -> Result<TrustBundle, Refusal> {
        let bundle =
            self.read(bundle, "setting a federated bundle for the server's own trust domain is not allowed")?;
        let set = self.store.bundles().set(bundle).await;
        let set = set.map_err(|error| Refusal::shown(Code::Internal, "failed to set bundle", &error))?;
        tracing::info!(trust_domain_id = %set.trust_domain.id(), "Bundle set successfully");
        Ok(set)
    }

    async fn update(
        &self,
        bundle: &types::Bundle,
        mask: Option<&types::BundleMask>,
    ) -> Result<TrustBundle, Refusal> {
        let bundle = self
            .read(bundle, "updating a federated bundle for the server's own trust domain is not allowed")?;
        let mask = mask.unwrap_or(&convert::ALL_OF_BUNDLE);
        let update = BundleUpdate {
            x509_authorities: mask.x509_authorities.then_some(bundle.x509_authorities),
            jwt_authorities: mask.jwt_authorities.then_some(bundle.jwt_authorities),
            wit_authorities: None,
            refresh_hint: mask.refresh_hint.then_some(bundle.refresh_hint),
            sequence_number: mask.sequence_number.then_some(bundle.sequence_number),
        };
        let updated = self.store.bundles().update(&bundle.trust_domain, update).await;
        let updated =
            updated.map_err(|error| missing_or(Code::Internal, "failed to update bundle", &error))?;
        tracing::debug!(trust_domain_id = %updated.trust_domain.id(), "Federated bundle updated");
        Ok(updated)
    }

    async fn delete(&self, trust_domain: &str, mode: DeleteMode) -> Result<(), Refusal> {
        let trust_domain = self
            .read_foreign(trust_domain, "removing the bundle for the server trust domain is not allowed")?;
        let deleted = self.store.bundles().delete(&trust_domain, mode).await;
        deleted
            .map_err(|error| missing_or(status::code_of(&error), "failed to delete federated bundle", &error))
    }

    fn read(&self, bundle: &types::Bundle, own_refused: &str) -> Result<TrustBundle, Refusal> {
        let trust_domain = self.read_foreign(&bundle.trust_domain, own_refused)?;
        convert::read_bundle(bundle, trust_domain)
            .map_err(|fault: BundleFault| Refusal::invalid_because("failed to convert bundle", &fault))
    }

    fn read_foreign(&self, trust_domain: &str, own_refused: &str) -> Result<TrustDomain, Refusal> {
        let trust_domain = TrustDomain::parse(trust_domain)
            .map_err(|e| Refusal::invalid_because("trust domain argument is not valid", &e))?;
        if trust_domain == self.trust_domain {
            return Err(Refusal::invalid(own_refused));
        }
        Ok(trust_domain)
    }

    /// Shows what was written to those who watch; a deleted bundle may have changed entries too.
    async fn written(&self) {
        if let Err(error) = self.federated.refresh().await {
            tracing::warn!(%error, "Could not reload federated bundles; they show later");
        }
        self.feed.changed().await;
    }
}

fn outcome(
    result: Result<TrustBundle, Refusal>,
    mask: Option<&types::BundleMask>,
) -> (types::Status, Option<types::Bundle>) {
    match result {
        Ok(bundle) => (status::ok(), Some(convert::bundle(&bundle, mask))),
        Err(refusal) => (refusal.into(), None),
    }
}

fn missing_or(code: Code, what: &str, error: &StoreError) -> Refusal {
    match status::code_of(error) {
        Code::NotFound => Refusal::not_found("bundle not found"),
        _ => Refusal::shown(code, what, error),
    }
}

fn about(trust_domain: &str) -> Subject {
    Subject { trust_domain_id: Some(trust_domain.to_owned()), ..Subject::default() }
}

fn authorities_subject(x509: &[types::X509Certificate], jwt: &[types::JwtKey]) -> Subject {
    let mut subject = Subject::default();
    add_jwt(&mut subject.others, "", jwt);
    add_x509(&mut subject.others, "", x509);
    subject
}

fn bundle_subject(bundle: &types::Bundle, mask: Option<&types::BundleMask>) -> Subject {
    let mut subject = about(&bundle.trust_domain);
    audit_bundle(&mut subject.others, "", bundle, mask);
    subject
}

/// What the audit log says of a bundle beside its trust domain, with `prefix` before each name.
pub(super) fn audit_bundle(
    others: &mut Others,
    prefix: &str,
    bundle: &types::Bundle,
    mask: Option<&types::BundleMask>,
) {
    let mask = mask.unwrap_or(&convert::ALL_OF_BUNDLE);
    if mask.refresh_hint {
        others.add(&format!("{prefix}refresh_hint"), bundle.refresh_hint);
    }
    if mask.sequence_number {
        others.add(&format!("{prefix}sequence_number"), bundle.sequence_number);
    }
    if mask.jwt_authorities {
        add_jwt(others, prefix, &bundle.jwt_authorities);
    }
    if mask.x509_authorities {
        add_x509(others, prefix, &bundle.x509_authorities);
    }
}

fn add_jwt(others: &mut Others, prefix: &str, keys: &[types::JwtKey]) {
    for (i, key) in keys.iter().enumerate() {
        add_jwt_key(others, prefix, key, &format!(".{i}"));
    }
}

fn add_jwt_key(others: &mut Others, prefix: &str, key: &types::JwtKey, suffix: &str) {
    let hash = convert::sha256_hex(&key.public_key);
    others.add(&format!("{prefix}jwt_authority_key_id{suffix}"), &key.key_id);
    others.add(&format!("{prefix}jwt_authority_expires_at{suffix}"), key.expires_at);
    others.add(&format!("{prefix}jwt_authority_public_key_sha256{suffix}"), hash);
}

fn add_x509(others: &mut Others, prefix: &str, certificates: &[types::X509Certificate]) {
    for (i, certificate) in certificates.iter().enumerate() {
        let hash = convert::sha256_hex(&certificate.asn1);
        others.add(&format!("{prefix}x509_authorities_asn1_sha256.{i}"), hash);
    }
}
