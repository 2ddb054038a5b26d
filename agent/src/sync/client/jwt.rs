//! JWT-SVIDs, signed by the server.

use finial_identity::SpiffeId;
use finial_proto::spire::api::server::svid::v1::{NewJwtsvidRequest, svid_client::SvidClient};

use super::{CallError, Client, wire};

/// A token as the server sent it.
pub struct SignedJwt {
    /// JWS in compact form.
    pub token: String,
    pub spiffe_id: SpiffeId,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
}

impl Client {
    /// A JWT-SVID for this entry and audience.
    pub async fn sign_jwt(&self, entry_id: &str, audience: &[String]) -> Result<SignedJwt, CallError> {
        let request = NewJwtsvidRequest { entry_id: entry_id.to_owned(), audience: audience.to_vec() };
        let answer = self
            .call("NewJWTSVID", |channel| {
                let request = request.clone();
                async move { SvidClient::new(channel).new_jwtsvid(request).await }
            })
            .await?;
        let malformed = |text: &str| CallError::Malformed(text.to_owned());
        let svid = answer.svid.ok_or_else(|| malformed("JWTSVID response missing SVID"))?;
        if svid.issued_at == 0 {
            return Err(malformed("JWTSVID missing issued at"));
        }
        if svid.expires_at == 0 {
            return Err(malformed("JWTSVID missing expires at"));
        }
        if svid.issued_at > svid.expires_at {
            return Err(malformed("JWTSVID issued after it has expired"));
        }
        let spiffe_id = wire::spiffe_id(svid.id, "id")
            .map_err(|error| CallError::Malformed(format!("JWT-SVID: {error}")))?;
        let (issued_at, expires_at) = (svid.issued_at, svid.expires_at);
        Ok(SignedJwt { token: svid.token, spiffe_id, issued_at, expires_at })
    }
}
