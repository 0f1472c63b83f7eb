//! Authorization matrix: every method of every service against every caller that may not call it. A method without a case
//! here fails the test.

mod caller;

use std::str::FromStr as _;

use dipylon::broker::CallerRole;
use dipylon::serve::authorization;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::authorization_matrix::caller::Caller;
use crate::support::DOMAIN;
use crate::support::served_broker::ServedBroker;

fn reason(result: Result<(), Status>, method: &str, who: &str) -> (Code, String) {
    let status = result.expect_err(&format!("{method} admitted {who}"));
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("{method} for {who}: no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "dipylon");
    assert!(
        Reason::parse(&info.reason).is_some(),
        "{} is not a known reason",
        info.reason
    );
    (status.code(), info.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorization_matrix() {
    let s = ServedBroker::start().await;
    let channel = Channel::from_shared(s.url.clone())
        .expect("url")
        .connect()
        .await
        .expect("connects");
    let task = s.task("triage").await;
    let disable =
        crate::support::served_broker::token_request(crate::support::disable("ann"), "r-1");
    let Ok(dipylon_sdk::client::TokenOutcome::Pending(pending)) =
        task.request_token(&disable).await
    else {
        panic!("pending")
    };
    let now = dipylon_sdk::clock::Clock::system().now();
    let svid = |name: &str| {
        s.env
            .svid_for(&s.url, &format!("spiffe://{DOMAIN}/agent/{name}"), now, 300)
            .expose_secret()
            .to_owned()
    };
    let caller = || Caller {
        channel: channel.clone(),
        served: &s,
        proof: None,
        bearer: None,
        evidence: svid("triage"),
        task: task.id().to_string(),
        access_request: pending.access_request_id().to_string(),
    };
    let stranger = SigningKey::generate().expect("key").0;
    let entries = s.broker.show().position().1;
    for method in dipylon_sdk::proto::methods() {
        let admits = authorization::method_policy(method)
            .expect("a row")
            .allowed_roles;
        let agents = admits.contains(&CallerRole::Agent);

        let anonymous = caller().call(method).await;
        assert_eq!(
            reason(anonymous, method, "anonymous"),
            (Code::Unauthenticated, "NOT_AUTHENTICATED".into())
        );

        let late = Caller {
            proof: Some((&stranger, "an-old-nonce".into())),
            ..caller()
        };
        assert_eq!(
            reason(late.call(method).await, method, "an old proof"),
            (Code::Unauthenticated, "USE_DPOP_NONCE".into())
        );

        let garbled = Caller {
            bearer: Some("x".into()),
            proof: Some((&stranger, s.broker.nonce())),
            ..caller()
        };
        let unknown = Caller {
            proof: Some((&stranger, s.broker.nonce())),
            evidence: svid("nobody"),
            ..caller()
        };
        let closed = (Code::Unauthenticated, "NOT_AUTHENTICATED".to_owned());
        assert_eq!(
            reason(garbled.call(method).await, method, "two credentials"),
            closed
        );
        if agents && !method.ends_with("OpenTask") {
            // A valid proof for another agent's task: answered like an unknown task.
            let nothing = (Code::NotFound, "NOT_FOUND".to_owned());
            assert_eq!(
                reason(unknown.call(method).await, method, "another's key"),
                nothing
            );
            let none = Caller {
                task: TaskId::from_random([1; 16]).to_string(),
                ..unknown
            };
            assert_eq!(reason(none.call(method).await, method, "no task"), nothing);
        } else {
            assert_eq!(
                reason(unknown.call(method).await, method, "a stranger"),
                closed
            );
            if !agents {
                let agent = Caller {
                    bearer: Some(svid("triage")),
                    ..caller()
                };
                assert_eq!(reason(agent.call(method).await, method, "an agent"), closed);
            }
        }
        for (name, kind) in [
            ("maria", CallerRole::Approver),
            ("olga", CallerRole::Operator),
            ("idp", CallerRole::Validator),
            ("audit", CallerRole::Auditor),
        ] {
            if agents || admits.contains(&kind) {
                continue;
            }
            let wrong = Caller {
                proof: Some((&s.env.keys[name], s.broker.nonce())),
                ..caller()
            };
            assert_eq!(
                reason(wrong.call(method).await, method, name),
                (Code::PermissionDenied, "NOT_PERMITTED".into())
            );
        }
    }
    assert_eq!(
        s.broker.show().position().1,
        entries,
        "refused calls write no entry"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_are_404() {
    let s = ServedBroker::start().await;
    let address = s.url.trim_start_matches("http://").to_owned();
    let get = |path: &'static str| {
        let address = address.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut socket = tokio::net::TcpStream::connect(&address)
                .await
                .expect("connects");
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.expect("read");
            answer
        }
    };
    assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/nothing").await.starts_with("HTTP/1.1 404"));
    let jwks = get("/.well-known/jwks.json").await;
    assert!(
        jwks.contains("\"keys\"") && !jwks.contains("\"d\""),
        "{jwks}"
    );
    // A path without a row in the guard table reaches no handler, in any spelling.
    for path in [
        "/dipylon.v1.TaskService/Mint",
        "/dipylon.v1.Admin/Do",
        "/dipylon.v1.TaskService/OpenTask/",
        "//dipylon.v1.TaskService/OpenTask",
    ] {
        let channel = Channel::from_shared(s.url.clone())
            .expect("url")
            .connect()
            .await
            .expect("connects");
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.expect("ready");
        let codec = tonic_prost::ProstCodec::<
            v1::ListAccessRequestsRequest,
            v1::ListAccessRequestsResponse,
        >::default();
        let uri = http::uri::PathAndQuery::from_str(path).expect("path");
        let status = grpc
            .unary(
                Request::new(v1::ListAccessRequestsRequest::default()),
                uri,
                codec,
            )
            .await
            .expect_err(path);
        assert!(
            status.code() == Code::Unimplemented
                && status
                    .get_details_error_info()
                    .is_some_and(|info| info.reason == "UNKNOWN_METHOD"),
            "{path}: {status:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_probes_are_anonymous() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let s = ServedBroker::start().await;
    let channel = Channel::from_shared(s.url.clone())
        .expect("url")
        .connect()
        .await
        .expect("connects");
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .expect("answers")
        .into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
}

/// The guard table equals the `Callers:` comments of the proto files: neither can be widened alone.
#[test]
fn guard_table_matches_proto_comments() {
    use prost::Message as _;
    let set =
        prost_types::FileDescriptorSet::decode(dipylon_sdk::proto::DESCRIPTOR).expect("descriptor");
    let mut checked = 0;
    for file in set
        .file
        .iter()
        .filter(|f| f.package() == dipylon_sdk::proto::PACKAGE)
    {
        let comments = file.source_code_info.clone().unwrap_or_default().location;
        for (s, service) in (0_i32..).zip(&file.service) {
            for (m, method) in (0_i32..).zip(&service.method) {
                // Field 6 of a file holds its services, field 2 of a service its methods.
                let here = comments
                    .iter()
                    .find(|l| l.path == [6, s, 2, m])
                    .expect("a comment");
                let text = here.leading_comments().replace('\n', " ");
                let callers = text.split("Callers:").nth(1).expect("a `Callers:` line");
                let callers = callers.split(['.', ';']).next().unwrap_or_default();
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                let admits = authorization::method_policy(&name)
                    .expect("a row")
                    .allowed_roles;
                for (word, kind) in [
                    ("agents", CallerRole::Agent),
                    ("approvers", CallerRole::Approver),
                    ("operators", CallerRole::Operator),
                    ("validators", CallerRole::Validator),
                    ("auditors", CallerRole::Auditor),
                ] {
                    assert_eq!(
                        callers.contains(word),
                        admits.contains(&kind),
                        "{name}: {word} ({callers})"
                    );
                }
                checked += 1;
            }
        }
    }
    assert_eq!(checked, dipylon_sdk::proto::methods().len());
}
