//! `spire.api.server.trustdomain.v1.TrustDomain`: relationships with other trust domains, managed at run time.
//!
//! They are kept and shown. No bundle endpoint is asked yet, so their bundles come by this service or by `Bundle`.

use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::{SpiffeId, SpiffeIdError};
use finial_identity::trust_domain::TrustDomain as Domain;
use finial_proto::spire::api::server::trustdomain::v1 as wire;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomain;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use tonic::{Code, Request, Response, Status};

use crate::access::audit::Subject;
use crate::api::bundle::audit_bundle;
use crate::api::convert::{self, BundleFault};
use crate::api::gate::Call;
use crate::api::status::{self, Refusal};
use crate::bundles::endpoint::{EndpointUrl, EndpointUrlError};
use crate::bundles::federated::FederatedBundles;
use crate::store::Store;
use crate::store::federation::{EndpointProfile, Relationship, RelationshipUpdate};

/// The service.
#[derive(Clone)]
pub struct TrustDomains {
    pub trust_domain: Domain,
    pub store: Store,
    pub federated: FederatedBundles,
}

#[tonic::async_trait]
impl TrustDomain for TrustDomains {
    async fn list_federation_relationships(
        &self,
        request: Request<wire::ListFederationRelationshipsRequest>,
    ) -> Result<Response<wire::ListFederationRelationshipsResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::ListFederationRelationshipsRequest { output_mask, page_size, page_token } =
            request.into_inner();
        let work = async {
            let page = convert::read_page(page_size, page_token);
            let page = self.store.federation().list(page.as_ref()).await;
            let page = page
                .map_err(|e| Refusal::shown(Code::Internal, "failed to list federation relationships", &e))?;
            let shown = page.items.iter().map(|one| shown(one, output_mask.as_ref()));
            Ok(wire::ListFederationRelationshipsResponse {
                federation_relationships: shown.collect(),
                next_page_token: page.next_token,
            })
        };
        call.answer(Subject::default, work).await
    }

    async fn get_federation_relationship(
        &self,
        request: Request<wire::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let call = Call::of(&request)?;
        let wire::GetFederationRelationshipRequest { trust_domain, output_mask } = request.into_inner();
        let work = async {
            let domain = read_domain(&trust_domain)?;
            let found = self.store.federation().get(&domain).await;
            let found = found
                .map_err(|e| Refusal::shown(Code::Internal, "failed to fetch federation relationship", &e))?;
            let found = found.ok_or_else(|| Refusal::not_found("federation relationship does not exist"))?;
            Ok(shown(&found, output_mask.as_ref()))
        };
        call.answer(|| about(&trust_domain), work).await
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<wire::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchCreateFederationRelationshipResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchCreateFederationRelationshipRequest { federation_relationships, output_mask } =
            request.into_inner();
        let mut results = Vec::with_capacity(federation_relationships.len());
        for one in &federation_relationships {
            let (status, federation_relationship) = outcome(
                self.create(one).await.map_err(|refusal| refusal.about(&subject(one, None))),
                output_mask.as_ref(),
            );
            call.audit_item(&status, || subject(one, None));
            results.push(wire::batch_create_federation_relationship_response::Result {
                status: Some(status),
                federation_relationship,
            });
        }
        self.written().await;
        Ok(Response::new(wire::BatchCreateFederationRelationshipResponse { results }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<wire::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchUpdateFederationRelationshipResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchUpdateFederationRelationshipRequest {
            federation_relationships,
            input_mask,
            output_mask,
        } = request.into_inner();
        let mut results = Vec::with_capacity(federation_relationships.len());
        for one in &federation_relationships {
            let updated = self.update(one, input_mask.as_ref()).await;
            let updated = updated.map_err(|refusal| refusal.about(&subject(one, input_mask.as_ref())));
            let (status, federation_relationship) = outcome(updated, output_mask.as_ref());
            call.audit_item(&status, || subject(one, input_mask.as_ref()));
            results.push(wire::batch_update_federation_relationship_response::Result {
                status: Some(status),
                federation_relationship,
            });
        }
        self.written().await;
        Ok(Response::new(wire::BatchUpdateFederationRelationshipResponse { results }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<wire::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchDeleteFederationRelationshipResponse>, Status> {
        let call = Call::of(&request)?;
        let mut results = Vec::new();
        for given in request.into_inner().trust_domains {
            // Once it is read, the name comes back without a scheme and a path.
            let (status, trust_domain) = match self.delete(&given).await {
                Ok(domain) => (status::ok(), domain.name().to_owned()),
                Err(refusal) => {
                    let domain = Domain::parse(&given);
                    let refusal = refusal.about(&about(&given));
                    (refusal.into(), domain.map_or_else(|_| given.clone(), |domain| domain.name().to_owned()))
                }
            };
            call.audit_item(&status, || about(&given));
            results.push(wire::batch_delete_federation_relationship_response::Result {
                status: Some(status),
                trust_domain,
            });
        }
        Ok(Response::new(wire::BatchDeleteFederationRelationshipResponse { results }))
    }

    async fn refresh_bundle(
        &self,
        request: Request<wire::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let given = request.into_inner().trust_domain;
        let read = read_domain(&given);
        let work = async {
            let domain = read.clone()?;
            let found = self.store.federation().get(&domain).await;
            let found = found.map_err(|e| Refusal::shown(Code::Internal, "failed to refresh bundle", &e))?;
            let text = match found {
                None => {
                    let text = format!("no relationship with trust domain \"{domain}\"");
                    return Err(Refusal::not_found(&text));
                }
                Some(_) => format!(
                    "failed to refresh bundle: bundle endpoints are not asked yet by this server; set the bundle of \
                     \"{domain}\" with \"bundle set\""
                ),
            };
            Err(Refusal::with_code(Code::Unimplemented, &text))
        };
        let subject = || read.as_ref().map_or_else(|_| Subject::default(), |_| about(&given));
        call.answer(subject, work).await
    }
}

impl TrustDomains {
    async fn create(&self, given: &types::FederationRelationship) -> Result<Relationship, Refusal> {
        let relationship = read(given)?;
        if relationship.trust_domain == self.trust_domain {
            return Err(Refusal::invalid("unable to create federation relationship for server trust domain"));
        }
        let created = self.store.federation().create(relationship).await;
        let created = created
            .map_err(|e| Refusal::shown(Code::Internal, "failed to create federation relationship", &e))?;
        self.look_for_endpoint_bundle(&created).await;
        tracing::debug!(trust_domain_id = given.trust_domain, "Federation relationship created");
        Ok(created)
    }

    async fn update(
        &self,
        given: &types::FederationRelationship,
        mask: Option<&types::FederationRelationshipMask>,
    ) -> Result<Relationship, Refusal> {
        // As in SPIRE, what the mask leaves out must be good too.
        let read = read(given)?;
        let mask = mask.unwrap_or(&ALL);
        let update = RelationshipUpdate {
            endpoint_url: mask.bundle_endpoint_url.then_some(read.endpoint_url),
            profile: mask.bundle_endpoint_profile.then_some(read.profile),
            bundle: read.bundle.filter(|_| mask.trust_domain_bundle),
        };
        let updated = self.store.federation().update(&read.trust_domain, update).await;
        let updated = updated.map_err(|e| {
            // No NOT_FOUND here: SPIRE answers this one as a failure of the server.
            let text = format!("failed to update federation relationship: {}", status::chain(&e));
            Refusal::with_code(Code::Internal, &text)
        })?;
        self.look_for_endpoint_bundle(&updated).await;
        tracing::debug!(trust_domain_id = given.trust_domain, "Federation relationship updated");
        Ok(updated)
    }

    async fn delete(&self, given: &str) -> Result<Domain, Refusal> {
        if given.is_empty() {
            return Err(Refusal::invalid("missing trust domain"));
        }
        let domain = read_domain(given)?;
        let deleted = self.store.federation().delete(&domain).await;
        deleted.map_err(|error| match status::code_of(&error) {
            Code::NotFound => Refusal::not_found("federation relationship not found"),
            _ => Refusal::shown(Code::Internal, "failed to delete federation relationship", &error),
        })?;
        tracing::debug!(trust_domain_id = given, "Federation relationship deleted");
        Ok(domain)
    }

    /// Warns if nobody could verify the endpoint: its ID is of a trust domain without a bundle.
    async fn look_for_endpoint_bundle(&self, relationship: &Relationship) {
        let (EndpointProfile::HttpsSpiffe(id), None) = (&relationship.profile, &relationship.bundle) else {
            return;
        };
        match self.store.bundles().get(&id.trust_domain()).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                tracing::warn!(endpoint_spiffe_id = %id, "bundle not found for the endpoint SPIFFE ID trust domain");
            }
            Err(error) => {
                tracing::warn!(
                    endpoint_spiffe_id = %id,
                    %error,
                    "failed to check whether a bundle exists for the endpoint SPIFFE ID trust domain"
                );
            }
        }
    }

    /// Shows bundles that came with relationships to those who watch.
    async fn written(&self) {
        if let Err(error) = self.federated.refresh().await {
            tracing::warn!(%error, "Could not reload federated bundles; they show later");
        }
    }
}

/// Why a relationship in a request is of no use.
#[derive(Debug, thiserror::Error)]
enum RelationshipFault {
    #[error("failed to parse trust domain: {0}")]
    TrustDomain(SpiffeIdError),
    #[error("{0}")]
    Url(#[from] EndpointUrlError),
    #[error("unsupported bundle endpoint profile type: <nil>")]
    NoProfile,
    #[error("failed to parse endpoint SPIFFE ID: {0}")]
    EndpointId(SpiffeIdError),
    #[error("failed to parse bundle: invalid trust domain: {0}")]
    BundleTrustDomain(SpiffeIdError),
    #[error("failed to parse bundle: {0}")]
    Bundle(#[from] BundleFault),
    #[error(
        "trust domain bundle (\"{of_bundle}\") must match the trust domain of the federation relationship \
         (\"{of_relationship}\")"
    )]
    OtherBundle { of_bundle: String, of_relationship: Domain },
}

fn read(given: &types::FederationRelationship) -> Result<Relationship, Refusal> {
    let read = || {
        let trust_domain = Domain::parse(&given.trust_domain).map_err(RelationshipFault::TrustDomain)?;
        let endpoint_url = EndpointUrl::parse(&given.bundle_endpoint_url)?.as_str().to_owned();
        let profile = match &given.bundle_endpoint_profile {
            None => return Err(RelationshipFault::NoProfile),
            Some(BundleEndpointProfile::HttpsWeb(_)) => EndpointProfile::HttpsWeb,
            Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
                let id = SpiffeId::parse(&profile.endpoint_spiffe_id);
                EndpointProfile::HttpsSpiffe(id.map_err(RelationshipFault::EndpointId)?)
            }
        };
        let bundle = given.trust_domain_bundle.as_ref().map(|bundle| read_bundle(bundle, &trust_domain));
        Ok(Relationship { bundle: bundle.transpose()?, trust_domain, endpoint_url, profile })
    };
    read().map_err(|fault| Refusal::invalid_because("failed to convert federation relationship", &fault))
}

fn read_bundle(bundle: &types::Bundle, of: &Domain) -> Result<Bundle, RelationshipFault> {
    let domain = Domain::parse(&bundle.trust_domain).map_err(RelationshipFault::BundleTrustDomain)?;
    let read = convert::read_bundle(bundle, domain)?;
    if read.trust_domain != *of {
        let of_bundle = bundle.trust_domain.clone();
        return Err(RelationshipFault::OtherBundle { of_bundle, of_relationship: of.clone() });
    }
    Ok(read)
}

fn read_domain(given: &str) -> Result<Domain, Refusal> {
    Domain::parse(given).map_err(|e| Refusal::invalid_because("failed to parse trust domain", &e))
}

const ALL: types::FederationRelationshipMask = types::FederationRelationshipMask {
    bundle_endpoint_url: true,
    bundle_endpoint_profile: true,
    trust_domain_bundle: true,
};

/// A relationship with the fields that the mask asks for. The trust domain is always there.
fn shown(
    relationship: &Relationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let mask = mask.unwrap_or(&ALL);
    let profile = || match &relationship.profile {
        EndpointProfile::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        EndpointProfile::HttpsSpiffe(id) => BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: id.to_string(),
        }),
    };
    let url = if mask.bundle_endpoint_url { relationship.endpoint_url.clone() } else { String::new() };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.name().to_owned(),
        bundle_endpoint_url: url,
        bundle_endpoint_profile: mask.bundle_endpoint_profile.then(profile),
        trust_domain_bundle: relationship
            .bundle
            .as_ref()
            .filter(|_| mask.trust_domain_bundle)
            .map(|bundle| convert::bundle(bundle, None)),
    }
}

fn outcome(
    result: Result<Relationship, Refusal>,
    mask: Option<&types::FederationRelationshipMask>,
) -> (types::Status, Option<types::FederationRelationship>) {
    match result {
        Ok(relationship) => (status::ok(), Some(shown(&relationship, mask))),
        Err(refusal) => (refusal.into(), None),
    }
}

fn about(trust_domain: &str) -> Subject {
    Subject { trust_domain_id: Some(trust_domain.to_owned()), ..Subject::default() }
}

fn subject(
    given: &types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> Subject {
    let mask = mask.unwrap_or(&ALL);
    let mut subject = Subject::default();
    if !given.trust_domain.is_empty() {
        subject.trust_domain_id = Some(given.trust_domain.clone());
    }
    if mask.bundle_endpoint_url {
        subject.others.add("bundle_endpoint_url", &given.bundle_endpoint_url);
    }
    if mask.bundle_endpoint_profile {
        match &given.bundle_endpoint_profile {
            None => {}
            Some(BundleEndpointProfile::HttpsWeb(_)) => {
                subject.others.add("bundle_endpoint_profile", "https_web");
            }
            Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
                subject.others.add("bundle_endpoint_profile", "https_spiffe");
                subject.others.add("endpoint_spiffe_id", &profile.endpoint_spiffe_id);
            }
        }
    }
    if let Some(bundle) = given.trust_domain_bundle.as_ref().filter(|_| mask.trust_domain_bundle) {
        subject.others.add("bundle_trust_domain_id", &bundle.trust_domain);
        audit_bundle(&mut subject.others, "bundle_", bundle, None);
    }
    subject
}
