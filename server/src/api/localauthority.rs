//! `spire.api.server.localauthority.v1.LocalAuthority`: rotation by hand.

use finial_proto::spire::api::server::localauthority::v1 as wire;
use finial_proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthority;
use tonic::{Code, Request, Response, Status};

use crate::access::audit::{Others, Subject};
use crate::api::gate::Call;
use crate::api::status::Refusal;
use crate::authority::by_hand::{ByHand, OrderError, Orders, Rule, Standings, State};
use crate::bundles::own::OwnBundle;

/// The service.
pub struct LocalAuthorities {
    pub by_hand: ByHand,
    pub own: OwnBundle,
}

#[tonic::async_trait]
impl LocalAuthority for LocalAuthorities {
    async fn get_x509_authority_state(
        &self,
        request: Request<wire::GetX509AuthorityStateRequest>,
    ) -> Result<Response<wire::GetX509AuthorityStateResponse>, Status> {
        let call = Call::of(&request)?;
        let work = async {
            let standings = show(&self.by_hand.x509).await?;
            Ok(wire::GetX509AuthorityStateResponse {
                active: standings.active.as_ref().map(state),
                prepared: standings.prepared().map(state),
                old: standings.old().map(state),
            })
        };
        call.answer(Subject::default, work).await
    }

    async fn prepare_x509_authority(
        &self,
        request: Request<wire::PrepareX509AuthorityRequest>,
    ) -> Result<Response<wire::PrepareX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let work = async {
            let standings = self.by_hand.x509.prepare().await;
            let standings = standings.map_err(|error| refused("failed to prepare X.509 authority", error))?;
            Ok(wire::PrepareX509AuthorityResponse { prepared_authority: standings.prepared().map(state) })
        };
        call.answer(Subject::default, work).await
    }

    async fn activate_x509_authority(
        &self,
        request: Request<wire::ActivateX509AuthorityRequest>,
    ) -> Result<Response<wire::ActivateX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let work = async {
            let standings = self.by_hand.x509.activate(&id).await;
            let standings =
                standings.map_err(|error| refused("failed to activate X.509 authority", error))?;
            Ok(wire::ActivateX509AuthorityResponse {
                activated_authority: standings.active.as_ref().map(state),
            })
        };
        call.answer(|| about(&id), work).await
    }

    async fn taint_x509_authority(
        &self,
        request: Request<wire::TaintX509AuthorityRequest>,
    ) -> Result<Response<wire::TaintX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let work = async {
            if self.by_hand.has_upstream {
                let text = "local authority can't be tainted if there is an upstream authority";
                return Err(Refusal::with_code(Code::FailedPrecondition, text));
            }
            let standings = show(&self.by_hand.x509).await?;
            standings.may_taint(&id).map_err(broken)?;
            let tainted = self.own.taint_x509(&id).await;
            tainted.map_err(|e| Refusal::shown(Code::Internal, "failed to taint X.509 authority", &e))?;
            tracing::info!(local_authority_id = id, "X.509 authority tainted successfully");
            Ok(wire::TaintX509AuthorityResponse { tainted_authority: standings.old().map(state) })
        };
        call.answer(|| about(&id), work).await
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<wire::RevokeX509AuthorityRequest>,
    ) -> Result<Response<wire::RevokeX509AuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let work = async {
            if self.by_hand.has_upstream {
                let text = "local authority can't be revoked if there is an upstream authority";
                return Err(Refusal::with_code(Code::FailedPrecondition, text));
            }
            let allowed = show(&self.by_hand.x509).await?.may_revoke_x509(&id);
            allowed.map_err(|e| Refusal::invalid_because("invalid authority ID", &e))?;
            let revoked = self.own.revoke_x509(&id).await;
            revoked.map_err(|e| Refusal::shown(Code::Internal, "failed to revoke X.509 authority", &e))?;
            tracing::info!(local_authority_id = id, "X.509 authority revoked successfully");
            Ok(wire::RevokeX509AuthorityResponse { revoked_authority: Some(only_id(&id)) })
        };
        call.answer(|| about(&id), work).await
    }

    async fn taint_x509_upstream_authority(
        &self,
        request: Request<wire::TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<wire::TaintX509UpstreamAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let given = request.into_inner().subject_key_id;
        let work = async {
            let id = self.droppable_upstream(&given, "provided subject key id is not valid").await?;
            let tainted = self.own.taint_x509(&id).await;
            tainted.map_err(|e| Refusal::shown(Code::Internal, "failed to taint upstream authority", &e))?;
            tracing::info!(subject_key_id = id, "X.509 upstream authority tainted successfully");
            Ok(wire::TaintX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id })
        };
        call.answer(|| about_upstream(&given), work).await
    }

    async fn revoke_x509_upstream_authority(
        &self,
        request: Request<wire::RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<wire::RevokeX509UpstreamAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let given = request.into_inner().subject_key_id;
        let work = async {
            let id = self.droppable_upstream(&given, "invalid subject key ID").await?;
            let revoked = self.own.revoke_x509(&id).await;
            let text = "failed to revoke X.509 upstream authority";
            revoked.map_err(|e| Refusal::shown(Code::Internal, text, &e))?;
            tracing::info!(subject_key_id = id, "X.509 upstream authority successfully revoked");
            Ok(wire::RevokeX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id })
        };
        call.answer(|| about_upstream(&given), work).await
    }

    async fn get_jwt_authority_state(
        &self,
        request: Request<wire::GetJwtAuthorityStateRequest>,
    ) -> Result<Response<wire::GetJwtAuthorityStateResponse>, Status> {
        let call = Call::of(&request)?;
        let work = async {
            let standings = show(self.jwt()?).await?;
            Ok(wire::GetJwtAuthorityStateResponse {
                active: standings.active.as_ref().map(state),
                prepared: standings.prepared().map(state),
                old: standings.old().map(state),
            })
        };
        call.answer(Subject::default, work).await
    }

    async fn prepare_jwt_authority(
        &self,
        request: Request<wire::PrepareJwtAuthorityRequest>,
    ) -> Result<Response<wire::PrepareJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let work = async {
            let standings = self.jwt()?.prepare().await;
            let standings = standings.map_err(|error| refused("failed to prepare JWT authority", error))?;
            Ok(wire::PrepareJwtAuthorityResponse { prepared_authority: standings.prepared().map(state) })
        };
        call.answer(Subject::default, work).await
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<wire::ActivateJwtAuthorityRequest>,
    ) -> Result<Response<wire::ActivateJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let work = async {
            let standings = self.jwt()?.activate(&id).await;
            let standings = standings.map_err(|error| refused("failed to activate JWT authority", error))?;
            Ok(wire::ActivateJwtAuthorityResponse {
                activated_authority: standings.active.as_ref().map(state),
            })
        };
        call.answer(|| about(&id), work).await
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<wire::TaintJwtAuthorityRequest>,
    ) -> Result<Response<wire::TaintJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let work = async {
            show(self.jwt()?).await?.may_taint(&id).map_err(broken)?;
            let tainted = self.own.taint_jwt(&id).await;
            tainted.map_err(|e| Refusal::shown(Code::Internal, "failed to taint JWT authority", &e))?;
            tracing::info!(local_authority_id = id, "JWT authority tainted successfully");
            Ok(wire::TaintJwtAuthorityResponse { tainted_authority: Some(only_id(&id)) })
        };
        call.answer(|| about(&id), work).await
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<wire::RevokeJwtAuthorityRequest>,
    ) -> Result<Response<wire::RevokeJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().authority_id;
        let work = async {
            let standings = show(self.jwt()?).await?;
            // Other servers' keys too: as the store has them now.
            let bundle = self.own.refresh().await;
            let bundle = bundle.map_err(|e| Refusal::invalid_because("invalid authority ID", &e))?;
            let allowed = standings.may_revoke_jwt(&id, &bundle);
            allowed.map_err(|e| Refusal::invalid_because("invalid authority ID", &e))?;
            let revoked = self.own.revoke_jwt(&id).await;
            revoked.map_err(|e| Refusal::shown(Code::Internal, "failed to revoke JWT authority", &e))?;
            tracing::info!(local_authority_id = id, "JWT authority revoked successfully");
            Ok(wire::RevokeJwtAuthorityResponse { revoked_authority: Some(only_id(&id)) })
        };
        call.answer(|| about(&id), work).await
    }

    async fn get_wit_authority_state(
        &self,
        request: Request<wire::GetWitAuthorityStateRequest>,
    ) -> Result<Response<wire::GetWitAuthorityStateResponse>, Status> {
        without_wit(&request).await
    }

    async fn prepare_wit_authority(
        &self,
        request: Request<wire::PrepareWitAuthorityRequest>,
    ) -> Result<Response<wire::PrepareWitAuthorityResponse>, Status> {
        without_wit(&request).await
    }

    async fn activate_wit_authority(
        &self,
        request: Request<wire::ActivateWitAuthorityRequest>,
    ) -> Result<Response<wire::ActivateWitAuthorityResponse>, Status> {
        without_wit(&request).await
    }

    async fn taint_wit_authority(
        &self,
        request: Request<wire::TaintWitAuthorityRequest>,
    ) -> Result<Response<wire::TaintWitAuthorityResponse>, Status> {
        without_wit(&request).await
    }

    async fn revoke_wit_authority(
        &self,
        request: Request<wire::RevokeWitAuthorityRequest>,
    ) -> Result<Response<wire::RevokeWitAuthorityResponse>, Status> {
        without_wit(&request).await
    }
}

impl LocalAuthorities {
    fn jwt(&self) -> Result<&Orders, Refusal> {
        let disabled = || Refusal::with_code(Code::Unimplemented, "JWT functionality is disabled");
        self.by_hand.jwt.as_ref().ok_or_else(disabled)
    }

    /// The ID as the bundle has it, of an upstream authority that nothing hangs on any more.
    async fn droppable_upstream(&self, given: &str, what: &str) -> Result<String, Refusal> {
        if !self.by_hand.has_upstream {
            let text = "upstream authority is not configured";
            return Err(Refusal::with_code(Code::FailedPrecondition, text));
        }
        let id = given.to_lowercase();
        let allowed = show(&self.by_hand.x509).await?.may_drop_upstream(&id);
        allowed.map_err(|e| Refusal::invalid_because(what, &e))?;
        Ok(id)
    }
}

async fn show(orders: &Orders) -> Result<Standings, Refusal> {
    orders.show().await.map_err(|error| refused("failed to read the authorities", error))
}

/// `what` is said only of what failed within the server.
fn refused(what: &str, error: OrderError) -> Refusal {
    match error {
        OrderError::Rule(rule) => broken(rule),
        OrderError::Stopping => Refusal::with_code(Code::Unavailable, &error.to_string()),
        OrderError::Drive(cause) => Refusal::shown(Code::Internal, what, &cause),
    }
}

fn broken(rule: Rule) -> Refusal {
    let code = match rule {
        Rule::Initializing => Code::Unavailable,
        Rule::ActivateOther(_) => Code::Internal,
        _ => Code::InvalidArgument,
    };
    Refusal::with_code(code, &rule.to_string())
}

async fn without_wit<T, A>(request: &Request<T>) -> Result<Response<A>, Status> {
    let call = Call::of(request)?;
    let refused = || Refusal::with_code(Code::Unimplemented, "WIT-SVID functionality is not yet implemented");
    call.answer(Subject::default, async { Err(refused()) }).await
}

fn state(state: &State) -> wire::AuthorityState {
    wire::AuthorityState {
        authority_id: state.authority_id.clone(),
        expires_at: state.expires_at,
        upstream_authority_subject_key_id: state.upstream_authority_id.clone(),
    }
}

fn only_id(authority_id: &str) -> wire::AuthorityState {
    wire::AuthorityState { authority_id: authority_id.to_owned(), ..Default::default() }
}

fn about(authority_id: &str) -> Subject {
    let given = (!authority_id.is_empty()).then(|| authority_id.to_owned());
    Subject { local_authority_id: given, ..Subject::default() }
}

fn about_upstream(subject_key_id: &str) -> Subject {
    let mut others = Others::default();
    if !subject_key_id.is_empty() {
        others.add("subject_key_id", subject_key_id);
    }
    Subject { others, ..Subject::default() }
}
