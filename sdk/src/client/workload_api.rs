//! SPIFFE Workload API client: JWT-SVIDs from the agent of this machine, over its Unix socket. The agent attests the caller
//! by the socket itself; no credential is sent to it.

use std::fmt;
use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::{EvidenceError, backoff_ms};
use crate::model::text::escape_invisible_capped;
use crate::model::{ParseError, Secret, SpiffeId};
use crate::proto::spiffe::JwtsvidRequest;
use crate::proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;

/// A SPIFFE agent's socket, the audience of the SVIDs to fetch, and the identity if the workload has several.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkloadApi {
    socket: String,
    audience: String,
    spiffe_id: Option<SpiffeId>,
}

impl WorkloadApi {
    /// An agent at this address (`unix:///run/spire/agent.sock`), for SVIDs that the broker accepts: `audience` is its
    /// evidence audience. Without a SPIFFE ID the agent's first answer is taken, which is its default (SPIFFE Workload API
    /// §6.1).
    pub fn new(
        address: &str,
        audience: &str,
        spiffe_id: Option<SpiffeId>,
    ) -> Result<Self, ParseError> {
        let invalid = |rule: &'static str| ParseError::new("Workload API", rule);
        let path = address
            .strip_prefix("unix://")
            .or_else(|| address.strip_prefix("unix:"))
            .ok_or_else(|| invalid("must be unix:///path; other transports are not supported"))?;
        // SPIFFE Workload Endpoint §4: an absolute path, and neither authority, query nor fragment.
        if !path.starts_with('/') || path.len() > SOCKET_BYTES_MAX || path.contains(['?', '#', '%'])
        {
            return Err(invalid(
                "must be unix:// and an absolute path of at most 107 bytes, and no more",
            ));
        }
        Ok(Self {
            socket: format!("unix://{path}"),
            audience: audience.to_owned(),
            spiffe_id,
        })
    }

    /// The address, as it can be given again.
    pub fn address(&self) -> &str {
        &self.socket
    }

    /// Fetches a JWT-SVID. The agent caches; this client keeps none. An agent that does not know the workload yet, or is not
    /// ready, is asked again with exponential backoff for five seconds (the error codes of the SPIFFE Workload Endpoint:
    /// PermissionDenied may pass, InvalidArgument does not). Fails after ten seconds.
    pub async fn fetch(&self) -> Result<Secret, EvidenceError> {
        let began = tokio::time::Instant::now();
        let fetching = async {
            let mut round = 0;
            loop {
                let (code, error) = match self.fetch_once().await {
                    Ok(svid) => return Ok(svid),
                    Err(failed) => failed,
                };
                let may_pass = matches!(code, Some(Code::PermissionDenied | Code::Unavailable));
                let pause = backoff_ms(round).map_or(RETRY_MS, u64::from);
                let retried_ms = began.elapsed().as_millis().saturating_add(pause.into());
                if !may_pass || retried_ms > u128::from(RETRY_MS) {
                    return Err(error);
                }
                round += 1;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(FETCH_TIMEOUT_S), fetching)
            .await
            .unwrap_or_else(|_| Err(self.failure("no answer in time")))
    }

    fn failure(&self, cause: &str) -> EvidenceError {
        EvidenceError::WorkloadApi {
            socket: self.socket.clone(),
            cause: escape_invisible_capped(cause, CAUSE_CHARS_MAX),
        }
    }

    /// One call. The code is the agent's, if it answered.
    async fn fetch_once(&self) -> Result<Secret, (Option<Code>, EvidenceError)> {
        let failure = |cause: &str| (None, self.failure(cause));
        let channel = Endpoint::from_shared(self.socket.clone())
            .map_err(|_| failure("is not an address"))?
            .connect()
            .await
            .map_err(|_| failure("no agent answers there"))?;
        let requested_id = self.spiffe_id.as_ref().map(SpiffeId::to_string);
        let mut request = Request::new(JwtsvidRequest {
            audience: vec![self.audience.clone()],
            spiffe_id: requested_id.clone().unwrap_or_default(),
        });
        // SPIFFE Workload Endpoint §6.1: a forged web request cannot carry this key.
        request
            .metadata_mut()
            .insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        let answer = SpiffeWorkloadApiClient::new(channel)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .fetch_jwtsvid(request)
            .await
            .map_err(|status| {
                let cause = format!("{:?}: {}", status.code(), status.message());
                (Some(status.code()), self.failure(&cause))
            })?
            .into_inner();
        answer
            .svids
            .into_iter()
            .find(|svid| requested_id.as_ref().is_none_or(|id| *id == svid.spiffe_id))
            .map(|svid| Secret::new(svid.svid))
            .ok_or_else(|| failure("it has no JWT-SVID for this workload"))
    }
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkloadApi({} for {})", self.socket, self.audience)
    }
}

/// Key in the metadata of every call (SPIFFE Workload Endpoint §6.1).
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// Longest time to connect and be answered, in seconds.
const FETCH_TIMEOUT_S: u64 = 10;
/// How long a call that may pass is repeated, in milliseconds.
const RETRY_MS: u64 = 5_000;
/// Largest answer, in bytes: some tens of SVIDs.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Longest socket path that Linux takes, in bytes (unix(7)).
const SOCKET_BYTES_MAX: usize = 107;
const CAUSE_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_must_be_an_absolute_path() {
        for (good, socket) in [
            (
                "unix:///run/spire/agent.sock",
                "unix:///run/spire/agent.sock",
            ),
            ("unix:/run/a.sock", "unix:///run/a.sock"),
        ] {
            let api = WorkloadApi::new(good, "http://b", None).expect(good);
            assert_eq!(api.address(), socket);
        }
        let long = format!("unix:///{}", "x".repeat(107));
        for bad in [
            "",
            "/run/a.sock",
            "unix:",
            "unix://",
            "unix://run/a.sock",
            "unix:a.sock",
            "tcp://127.0.0.1:8081",
            "unix:///a?x=1",
            "unix:///a#x",
            long.as_str(),
        ] {
            assert!(WorkloadApi::new(bad, "http://b", None).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn workload_api_error_names_the_socket() {
        let dir = tempfile::tempdir().expect("dir");
        let address = format!("unix://{}/none.sock", dir.path().display());
        let api = WorkloadApi::new(&address, "http://b", None).expect("address");
        let error = api.fetch().await.expect_err("no listener").to_string();
        assert!(
            error.contains(&address) && error.contains("no agent answers"),
            "{error}"
        );
    }
}
