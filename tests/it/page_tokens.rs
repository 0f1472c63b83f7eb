//! Page tokens through real sockets: each list takes its own tokens, with the same filter and from the same run of the
//! broker, and refuses every other one.

use std::str::FromStr as _;

use dipylon_sdk::jose::dpop;
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::approval_service_client::ApprovalServiceClient;
use dipylon_sdk::proto::v1::governance_service_client::GovernanceServiceClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::{disable, rand_u64, read_case};

/// The lists with pages, by the method that reads one row of them.
const LISTS: [&str; 11] = [
    "ApprovalService/ListAccessRequests",
    "ApprovalService/ListApprovers",
    "GovernanceService/ListAgents",
    "GovernanceService/ListFreezes",
    "GovernanceService/ListPolicyBundles",
    "GovernanceService/ListTasks",
    "GovernanceService/ListRules",
    "GovernanceService/ListApproverStats",
    "GovernanceService/ListTokens",
    "GovernanceService/ListTasks?include_ended",
    "ApprovalService/ListAccessRequests?decidable_only",
];

struct Reader<'a> {
    served: &'a ServedBroker,
    channel: Channel,
}

impl<'a> Reader<'a> {
    async fn new(served: &'a ServedBroker) -> Self {
        let endpoint = Channel::from_shared(served.url.clone()).expect("url");
        Self {
            channel: endpoint.connect().await.expect("connects"),
            served,
        }
    }

    fn request<T>(&self, method: &str, message: T) -> Request<T> {
        let claims = dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{}/dipylon.v1.{method}", self.served.url),
            iat: dipylon_sdk::clock::Clock::system().now(),
            jti: &format!("{:x}{:x}", rand_u64(), rand_u64()),
            nonce: Some(&self.served.broker.nonce()),
            ath: None,
            action_digest: None,
            evidence_hash: None,
        };
        let who = match method {
            "ApprovalService/ListAccessRequests" => "maria",
            _ => "olga",
        };
        let proof = dpop::create(&self.served.env.key_of(who), &claims).expect("proof");
        let mut request = Request::new(message);
        request.metadata_mut().insert(
            "dpop",
            MetadataValue::from_str(proof.expose_secret()).expect("ascii"),
        );
        request
    }

    /// The ids of a page of one row, and the token of the next page.
    async fn page(&self, list: &str, page_token: &str) -> Result<(Vec<String>, String), Status> {
        let (method, variant) = list.split_once('?').unwrap_or((list, ""));
        let (page_size, page_token) = (1, page_token.to_owned());
        let mut approvals = ApprovalServiceClient::new(self.channel.clone());
        let mut governance = GovernanceServiceClient::new(self.channel.clone());
        macro_rules! read {
            ($client:ident.$call:ident($message:ident { $($more:tt)* }), $rows:ident, $id:expr) => {{
                let message = v1::$message { page_size, page_token, $($more)* };
                let page = $client.$call(self.request(method, message)).await?.into_inner();
                let id = $id;
                Ok((page.$rows.into_iter().map(id).collect(), page.next_page_token))
            }};
        }
        match method.rsplit('/').next().expect("a name") {
            "ListAccessRequests" => read!(
                approvals.list_access_requests(ListAccessRequestsRequest {
                    decidable_only: !variant.is_empty(),
                }),
                rows,
                |row: v1::InboxRow| row.access_request.expect("one").access_request_id
            ),
            "ListApprovers" => read!(
                approvals.list_approvers(ListApproversRequest {}),
                approvers,
                |row: v1::Approver| row.person_id
            ),
            "ListAgents" => read!(
                governance.list_agents(ListAgentsRequest {}),
                agents,
                |row: v1::RegisteredAgent| row.agent_id
            ),
            "ListFreezes" => read!(
                governance.list_freezes(ListFreezesRequest {}),
                freezes,
                |row: v1::ActiveFreeze| row.scope
            ),
            "ListPolicyBundles" => read!(
                governance.list_policy_bundles(ListPolicyBundlesRequest {}),
                bundles,
                |row: v1::PolicyBundleInForce| row.version
            ),
            "ListTasks" => read!(
                governance.list_tasks(ListTasksRequest {
                    agent_id: String::new(),
                    include_ended: !variant.is_empty(),
                }),
                tasks,
                |row: v1::TaskSummary| row.task_id
            ),
            "ListRules" => read!(
                governance.list_rules(ListRulesRequest {}),
                rules,
                |row: v1::RuleStats| row.rule_id
            ),
            "ListApproverStats" => read!(
                governance.list_approver_stats(ListApproverStatsRequest {}),
                approvers,
                |row: v1::ApproverStats| row.person_id
            ),
            "ListTokens" => read!(
                governance.list_tokens(ListTokensRequest {}),
                tokens,
                |row: v1::ActiveToken| row.jti
            ),
            other => panic!("no such list: {other}"),
        }
    }

    async fn refuses(&self, list: &str, token: &str) {
        let status = self.page(list, token).await.expect_err(list);
        assert_eq!(status.code(), Code::InvalidArgument, "{list}: {status}");
        assert!(status.message().contains("page_token"), "{status}");
        assert!(
            status.message().contains("start again without a token"),
            "{status}"
        );
    }
}

async fn with_two_of_each() -> ServedBroker {
    let served = ServedBroker::start().await;
    for key in ["r-1", "r-2"] {
        let task = served.task("triage").await;
        task.request_token(&token_request(disable("ann"), key))
            .await
            .expect("pending");
        task.request_token(&token_request(read_case(), &format!("{key}-read")))
            .await
            .expect("issued");
    }
    let operator = served.operator("olga");
    let documented = served
        .env
        .policy_with("README.md", |_| "Ours.\n".to_owned());
    let applied = operator.apply_policy_bundle(&documented).await;
    applied.expect("in force");
    for scope in ["action/case.note", "action/host.isolate"] {
        let scope = FreezeScope::parse(scope).expect("scope");
        operator.freeze(&scope, "").await.expect("frozen");
    }
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_tokens_are_bound_to_their_list() {
    let served = with_two_of_each().await;
    let reader = Reader::new(&served).await;
    let mut tokens = Vec::new();
    for list in LISTS {
        // From the first page to the last, every row comes once.
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (rows, next) = reader.page(list, &token).await.expect(list);
            assert_eq!(rows.len(), 1, "{list}");
            seen.extend(rows);
            if token.is_empty() {
                tokens.push(next.clone());
            }
            token = next;
            if token.is_empty() {
                break;
            }
        }
        assert!(seen.len() > 1, "{list}");
        let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "{list}: {seen:?}");
    }
    for (place, list) in LISTS.iter().enumerate() {
        for (other, token) in tokens.iter().enumerate() {
            if other != place {
                reader.refuses(list, token).await;
            }
        }
        let own = &tokens[place];
        for wrong in [
            "x",
            "triage",
            "0",
            &format!("{own}A"),
            &own[..own.len() - 2],
        ] {
            reader.refuses(list, wrong).await;
        }
    }
    let served = served.restart().await;
    let reader = Reader::new(&served).await;
    for (list, token) in LISTS.iter().zip(&tokens) {
        reader.refuses(list, token).await;
    }
}
