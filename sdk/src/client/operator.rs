use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::channel::RpcMethod;
use super::policy_chunks::{BundleAssembly, chunks, plan_chunks};
use super::responses::{
    ActiveToken, AgentInfo, AppliedBundle, ApproverInfo, ApproverStatistics, EnrolmentInvitation,
    Explanation, FactInfo, FactReport, FreezeInfo, FreezeReport, JournalSearchPage,
    KeyRevocationReport, PolicyBundleContent, PolicyBundleInfo, PolicyStatus, ReadWire,
    RuleStatistics, SuspensionReport, TaskEndReport, TaskInfo, TaskTimeline, TimelineEntry,
    TokenRevocation,
};
use super::{CallOptions, Endpoint, Error, Identity, methods, required};
use crate::jose::SigningKey;
use crate::model::{
    AccessRequestId, AgentId, Digest, DigestPrefix, FactName, FreezeScope, ParseError, PersonId,
    PolicyPlan, Secret, TaskId, Thumbprint, TokenId, UntrustedText, json,
};
use crate::proto::v1;

/// Longest receipt that a broker sends, in bytes.
const RECEIPT_BYTES_MAX: usize = 1024 * 1024;
/// Longest plan that a broker sends, in bytes.
const PLAN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Time between two questions for a plan that is being made.
const PLAN_POLL: Duration = Duration::from_millis(300);
/// Longest wait for a whole receipt or policy bundle.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// What the broker sent of a plan.
enum PlanPart {
    Whole(String),
    /// It is being made: decisions looked at so far.
    Running(u64),
    TooLong,
}

/// A client for operators and auditors: policy, agents, freezes, people, statistics and the journal.
///
/// The caller is known by a key that the policy bundle registers for a person. A method without a note is for operators alone;
/// a call by another person fails with [`crate::model::Reason::NotPermitted`].
#[derive(Debug, Clone)]
pub struct OperatorClient {
    endpoint: Endpoint,
    identity: Identity,
}

impl OperatorClient {
    /// A client that proves the possession of this key (RFC 9449).
    pub fn new(endpoint: Endpoint, key: Arc<SigningKey>) -> Self {
        Self {
            endpoint,
            identity: Identity::Key(key),
        }
    }

    /// Applies a policy bundle: its files by their paths inside it.
    pub async fn apply_policy_bundle(
        &self,
        files: &BTreeMap<String, String>,
    ) -> Result<AppliedBundle, Error> {
        self.apply_policy_bundle_returning(files, &[], None).await
    }

    /// The same, with the people who return: the bundle registers them again, or gives a role back, and they are the same as before,
    /// so their passkeys and registered keys count again. With a base version, the bundle is refused while another one is in force.
    pub async fn apply_policy_bundle_returning(
        &self,
        files: &BTreeMap<String, String>,
        returning: &[PersonId],
        base: Option<&Digest>,
    ) -> Result<AppliedBundle, Error> {
        let options = CallOptions::by(&self.identity);
        self.apply(options, files, returning, base).await
    }

    /// Plans a policy bundle: what it would end, and what it would have decided of the decisions of so many days (1 to 366). Waits for
    /// the plan; `progress` is told how many decisions were looked at. When the future is dropped, the broker cancels the plan within
    /// half a minute, and at once for another plan of the same operator.
    pub async fn plan_policy_bundle(
        &self,
        files: &BTreeMap<String, String>,
        returning: &[PersonId],
        days: u32,
        mut progress: impl FnMut(u64),
    ) -> Result<PolicyPlan, Error> {
        let options = CallOptions::by(&self.identity);
        let begun = self
            .endpoint
            .call::<methods::PlanPolicyBundle>(options, &plan_chunks(files, returning, days))
            .await?;
        let request = v1::GetPolicyPlanRequest {
            plan_id: begun.plan_id,
        };
        loop {
            match self.policy_plan(&request).await? {
                Ok(plan) => return Ok(plan),
                Err(decisions) => progress(decisions),
            }
            tokio::time::sleep(PLAN_POLL).await;
        }
    }

    /// A plan, or how many decisions were looked at so far.
    async fn policy_plan(
        &self,
        request: &v1::GetPolicyPlanRequest,
    ) -> Result<Result<PolicyPlan, u64>, Error> {
        let options = CallOptions::by(&self.identity);
        let mut parts = self
            .endpoint
            .watch::<methods::GetPolicyPlan>(options, request)
            .await?;
        let mut text = String::new();
        let received = async {
            while let Some(message) = parts.message().await? {
                if text.len().saturating_add(message.part.len()) > PLAN_BYTES_MAX {
                    return Ok(PlanPart::TooLong);
                }
                text.push_str(&message.part);
                if message.is_last {
                    return Ok(PlanPart::Whole(text));
                }
                if message.part.is_empty() {
                    return Ok(PlanPart::Running(message.decisions));
                }
            }
            Err(Status::unavailable("the plan was cut; get it again"))
        };
        let received = tokio::time::timeout(DOCUMENT_TIMEOUT, received).await;
        let received = received
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the plan did not arrive in time")));
        let wrong = |why: String| Error::Answer(ParseError::new("plan", why));
        match received.map_err(|status| self.endpoint.stream_error(&status))? {
            PlanPart::Whole(text) => {
                let plan = json::parse_as(text.as_bytes());
                Ok(Ok(plan.map_err(|e| wrong(e.to_string()))?))
            }
            PlanPart::Running(decisions) => Ok(Err(decisions)),
            PlanPart::TooLong => Err(wrong("is beyond 4 MiB".to_owned())),
        }
    }

    /// Applies the first policy bundle of a broker, with the one-time code that the broker printed at its start. The bundle
    /// must list this key as an operator's.
    pub async fn apply_first_policy_bundle(
        &self,
        files: &BTreeMap<String, String>,
        code: &Secret,
    ) -> Result<AppliedBundle, Error> {
        let options = CallOptions {
            code: Some(code),
            ..CallOptions::by(&self.identity)
        };
        self.apply(options, files, &[], None).await
    }

    async fn apply(
        &self,
        options: CallOptions<'_>,
        files: &BTreeMap<String, String>,
        returning: &[PersonId],
        base: Option<&Digest>,
    ) -> Result<AppliedBundle, Error> {
        let response = self
            .endpoint
            .call::<methods::ApplyPolicyBundle>(options, &chunks(files, returning, base))
            .await?;
        Ok(response.read())
    }

    /// The policy bundle in force, since when and by whom, and the proposals that wait. For auditors too.
    pub async fn policy_status(&self) -> Result<PolicyStatus, Error> {
        let request = v1::ListPolicyBundlesRequest {
            page_size: 1,
            page_token: String::new(),
        };
        Ok(self
            .call::<methods::ListPolicyBundles>(request)
            .await?
            .read())
    }

    /// At most `max` policy bundles that came in force, the newest first. For auditors too.
    pub async fn policy_bundles(&self, max: usize) -> Result<Vec<PolicyBundleInfo>, Error> {
        self.pages::<methods::ListPolicyBundles, _, _>(
            max,
            |page_token, left| v1::ListPolicyBundlesRequest {
                page_size: page_rows(left),
                page_token,
            },
            |page| (page.bundles, page.next_page_token),
        )
        .await
    }

    /// The files of a policy bundle that is or was in force, by the first characters of its version; `None`: of the one in force.
    /// Verifies here that the files have the version. For auditors too.
    pub async fn policy_bundle(
        &self,
        version: Option<&DigestPrefix>,
    ) -> Result<PolicyBundleContent, Error> {
        let request = v1::GetPolicyBundleRequest {
            version: version.map(DigestPrefix::to_string).unwrap_or_default(),
        };
        let options = CallOptions::by(&self.identity);
        let mut parts = self
            .endpoint
            .watch::<methods::GetPolicyBundle>(options, &request)
            .await?;
        let mut bundle = BundleAssembly::default();
        let received = async {
            while let Some(message) = parts.message().await? {
                let is_last = message.is_last;
                if let Err(wrong) = bundle.add(message) {
                    return Ok(Err(wrong));
                }
                if is_last {
                    return Ok(bundle.finish(version));
                }
            }
            Err(Status::unavailable(
                "the policy bundle was cut; get it again",
            ))
        };
        let received = tokio::time::timeout(DOCUMENT_TIMEOUT, received).await;
        let received = received.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(
                "the policy bundle did not arrive in time",
            ))
        });
        received
            .map_err(|status| self.endpoint.stream_error(&status))?
            .map_err(Error::Answer)
    }

    /// Suspends an agent, and ends its tasks, tokens and access requests. `reason` has at most 2,000 bytes.
    pub async fn suspend(&self, agent: &AgentId, reason: &str) -> Result<SuspensionReport, Error> {
        let request = v1::SuspendAgentRequest {
            agent_id: agent.to_string(),
            reason: UntrustedText::parse("reason", reason)?.as_str().to_owned(),
        };
        Ok(self.call::<methods::SuspendAgent>(request).await?.read())
    }

    /// Lets a suspended agent open tasks again; nothing that ended comes back. Returns the index of the journal entry.
    pub async fn resume(&self, agent: &AgentId) -> Result<u64, Error> {
        let request = v1::ResumeAgentRequest {
            agent_id: agent.to_string(),
        };
        Ok(self.call::<methods::ResumeAgent>(request).await?.position)
    }

    /// Every agent with its status, by id.
    pub async fn agents(&self) -> Result<Vec<AgentInfo>, Error> {
        self.pages::<methods::ListAgents, _, _>(
            usize::MAX,
            |page_token, _| v1::ListAgentsRequest {
                page_size: 0,
                page_token,
            },
            |page| (page.agents, page.next_page_token),
        )
        .await
    }

    /// One agent with its status and its use of each action.
    pub async fn agent(&self, agent: &AgentId) -> Result<AgentInfo, Error> {
        let request = v1::GetAgentRequest {
            agent_id: agent.to_string(),
        };
        let response = self.call::<methods::GetAgent>(request).await?;
        Ok(required("agent", response.agent)?.read())
    }

    /// Freezes everything, an agent, an owner's agents or an action, and ends what it stops. `reason` has at most 2,000 bytes.
    pub async fn freeze(&self, scope: &FreezeScope, reason: &str) -> Result<FreezeReport, Error> {
        let request = v1::FreezeRequest {
            scope: scope.to_string(),
            reason: UntrustedText::parse("reason", reason)?.as_str().to_owned(),
        };
        Ok(self.call::<methods::Freeze>(request).await?.read())
    }

    /// Withdraws a proposal of the operator's own, by its id in [`AppliedBundle::access_request_id`].
    pub async fn withdraw_policy_proposal(&self, id: AccessRequestId) -> Result<(), Error> {
        let request = v1::WithdrawPolicyProposalRequest {
            access_request_id: id.to_string(),
        };
        self.call::<methods::WithdrawPolicyProposal>(request)
            .await?;
        Ok(())
    }

    /// Lifts a freeze; nothing that ended comes back. Returns the index of the journal entry.
    pub async fn unfreeze(&self, scope: &FreezeScope) -> Result<u64, Error> {
        let request = v1::UnfreezeRequest {
            scope: scope.to_string(),
        };
        Ok(self.call::<methods::Unfreeze>(request).await?.position)
    }

    /// Sets a named fact of the policy bundle in force: to its normal value with no time, to the other one for a number of seconds; where
    /// others have to agree, since it is not the safe one, proposes it. `reason` is for them, at most 2,000 bytes.
    pub async fn set_fact(
        &self,
        fact: &FactName,
        value: bool,
        seconds: Option<u32>,
        reason: &str,
    ) -> Result<FactReport, Error> {
        let request = v1::SetFactRequest {
            fact: fact.to_string(),
            value,
            valid_for: seconds.map(|seconds| prost_types::Duration {
                seconds: seconds.into(),
                nanos: 0,
            }),
            reason: UntrustedText::parse("reason", reason)?.as_str().to_owned(),
        };
        Ok(self.call::<methods::SetFact>(request).await?.read())
    }

    /// The named facts that the policy bundle in force declares. For auditors too.
    pub async fn facts(&self) -> Result<Vec<FactInfo>, Error> {
        let response = self
            .call::<methods::ListFacts>(v1::ListFactsRequest {})
            .await?;
        Ok(response.facts.read())
    }

    /// Freezes in force.
    pub async fn freezes(&self) -> Result<Vec<FreezeInfo>, Error> {
        self.pages::<methods::ListFreezes, _, _>(
            usize::MAX,
            |page_token, _| v1::ListFreezesRequest {
                page_size: 0,
                page_token,
            },
            |page| (page.freezes, page.next_page_token),
        )
        .await
    }

    /// At most `max` tasks, the newest first; with those that ended when `ended`. For auditors too.
    pub async fn tasks(
        &self,
        agent: Option<&AgentId>,
        ended: bool,
        max: usize,
    ) -> Result<Vec<TaskInfo>, Error> {
        self.pages::<methods::ListTasks, _, _>(
            max,
            |page_token, left| v1::ListTasksRequest {
                agent_id: agent.map(ToString::to_string).unwrap_or_default(),
                include_ended: ended,
                page_size: page_rows(left),
                page_token,
            },
            |page| (page.tasks, page.next_page_token),
        )
        .await
    }

    /// Ends a task, its tokens and its access requests.
    pub async fn end_task(&self, task: TaskId) -> Result<TaskEndReport, Error> {
        let request = v1::EndTaskRequest {
            task_id: task.to_string(),
        };
        let response = self.call::<methods::EndTask>(request).await?;
        Ok(required("report", response.report)?.read())
    }

    /// At most `max` active tokens, the next to expire first. For auditors too.
    pub async fn active_tokens(&self, max: usize) -> Result<Vec<ActiveToken>, Error> {
        self.pages::<methods::ListTokens, _, _>(
            max,
            |page_token, _| v1::ListTokensRequest {
                page_size: 0,
                page_token,
            },
            |page| (page.tokens, page.next_page_token),
        )
        .await
    }

    /// Revokes one token; its task goes on.
    pub async fn revoke_token(&self, jti: TokenId) -> Result<TokenRevocation, Error> {
        let request = v1::RevokeTokenRequest {
            jti: jti.to_string(),
        };
        Ok(self.call::<methods::RevokeToken>(request).await?.read())
    }

    /// Invites a registered person to enrol a passkey.
    pub async fn invite(&self, person: &PersonId) -> Result<EnrolmentInvitation, Error> {
        let request = v1::InviteApproverRequest {
            person_id: person.to_string(),
        };
        Ok(self.call::<methods::InviteApprover>(request).await?.read())
    }

    /// Confirms that a person enrolled a passkey themselves, by the thumbprint of its key. Refused to the person and to their inviter.
    /// Returns the position of the entry.
    pub async fn confirm_passkey(&self, person: &PersonId, key: Thumbprint) -> Result<u64, Error> {
        let request = v1::ConfirmPasskeyRequest {
            person_id: person.to_string(),
            key: key.to_string(),
        };
        let response = self.call::<methods::ConfirmPasskey>(request).await?;
        Ok(response.position)
    }

    /// People with their keys and passkeys, by id.
    pub async fn approvers(&self) -> Result<Vec<ApproverInfo>, Error> {
        self.pages::<methods::ListApprovers, _, _>(
            usize::MAX,
            |page_token, _| v1::ListApproversRequest {
                page_size: 0,
                page_token,
            },
            |page| (page.approvers, page.next_page_token),
        )
        .await
    }

    /// Revokes one key of a person, or all.
    pub async fn revoke_keys(
        &self,
        person: &PersonId,
        key: Option<Thumbprint>,
    ) -> Result<KeyRevocationReport, Error> {
        let request = v1::RevokeApproverKeysRequest {
            person_id: person.to_string(),
            key: key.map(|k| k.to_string()).unwrap_or_default(),
            compromised: false,
        };
        let revoked = self.call::<methods::RevokeApproverKeys>(request).await?;
        Ok(revoked.read())
    }

    /// The same for keys that somebody else may have: also where no operator with a living key is left. Then only
    /// `dipylon recover operators` on the broker's host brings one back.
    pub async fn revoke_compromised_keys(
        &self,
        person: &PersonId,
        key: Option<Thumbprint>,
    ) -> Result<KeyRevocationReport, Error> {
        let request = v1::RevokeApproverKeysRequest {
            person_id: person.to_string(),
            key: key.map(|k| k.to_string()).unwrap_or_default(),
            compromised: true,
        };
        let revoked = self.call::<methods::RevokeApproverKeys>(request).await?;
        Ok(revoked.read())
    }

    /// Explains a decision, an access request, a task, a token or a refused call, by its id.
    pub async fn explain(&self, id: &str) -> Result<Explanation, Error> {
        let request = v1::ExplainRequest { id: id.to_owned() };
        Ok(self.call::<methods::Explain>(request).await?.read())
    }

    /// The receipt of a token: one JSON text, as the broker signed it and not verified here. For auditors too.
    pub async fn token_receipt(&self, jti: TokenId) -> Result<String, Error> {
        let request = v1::GetTokenReceiptRequest {
            jti: jti.to_string(),
        };
        let options = CallOptions::by(&self.identity);
        let mut parts = self
            .endpoint
            .watch::<methods::GetTokenReceipt>(options, &request)
            .await?;
        let mut text = String::new();
        let received = async {
            while let Some(message) = parts.message().await? {
                if text.len().saturating_add(message.part.len()) > RECEIPT_BYTES_MAX {
                    return Ok(None);
                }
                text.push_str(&message.part);
                if message.is_last {
                    return Ok(Some(text));
                }
            }
            Err(Status::unavailable("the receipt was cut; get it again"))
        };
        let received = tokio::time::timeout(DOCUMENT_TIMEOUT, received).await;
        let received = received.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(
                "the receipt did not arrive in time",
            ))
        });
        let too_long = || Error::Answer(ParseError::new("part", "is beyond 1 MiB in all"));
        received
            .map_err(|status| self.endpoint.stream_error(&status))?
            .ok_or_else(too_long)
    }

    /// Rules in force with statistics of their decisions, by id. For approvers and auditors too.
    pub async fn rules(&self) -> Result<Vec<RuleStatistics>, Error> {
        self.pages::<methods::ListRules, _, _>(
            usize::MAX,
            |page_token, _| v1::ListRulesRequest {
                page_size: 0,
                page_token,
            },
            |page| (page.rules, page.next_page_token),
        )
        .await
    }

    /// Approvers with statistics of their votes, by id. For auditors too.
    pub async fn approver_statistics(&self) -> Result<Vec<ApproverStatistics>, Error> {
        self.pages::<methods::ListApproverStats, _, _>(
            usize::MAX,
            |page_token, _| v1::ListApproverStatsRequest {
                page_size: 0,
                page_token,
            },
            |page| (page.approvers, page.next_page_token),
        )
        .await
    }

    /// The history of a task, from its verification to its end. For approvers and auditors too.
    pub async fn timeline(&self, task: TaskId) -> Result<TaskTimeline, Error> {
        let mut entries: Vec<TimelineEntry> = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::GetTimelineRequest {
                task_id: task.to_string(),
                page_token,
            };
            let page = self.call::<methods::GetTimeline>(request).await?;
            page_token = page.next_page_token.clone();
            let page: TaskTimeline = page.read();
            entries.extend(page.entries);
            if page_token.is_empty() {
                return Ok(TaskTimeline { entries, ..page });
            }
        }
    }

    /// One page of the journal entries that name a word, newest first; of every entry for an empty one. `below` is
    /// [`JournalSearchPage::next`] of the page before. For auditors too.
    pub async fn search(
        &self,
        query: &str,
        below: Option<u64>,
    ) -> Result<JournalSearchPage, Error> {
        let request = v1::SearchJournalRequest {
            query: query.to_owned(),
            below,
        };
        Ok(self.call::<methods::SearchJournal>(request).await?.read())
    }

    async fn call<M: RpcMethod>(&self, request: M::Request) -> Result<M::Response, Error> {
        self.endpoint
            .call::<M>(CallOptions::by(&self.identity), &[request])
            .await
    }

    /// Reads pages until the last, or until there are `max` rows. `request` takes the page's token and how many rows are
    /// wanted still; `split` takes a page apart into its rows and the next page's token.
    async fn pages<M: RpcMethod, T, R: ReadWire<T>>(
        &self,
        max: usize,
        request: impl Fn(String, usize) -> M::Request,
        split: impl Fn(M::Response) -> (Vec<R>, String),
    ) -> Result<Vec<T>, Error> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        while all.len() < max {
            let page = self.call::<M>(request(page_token, max - all.len())).await?;
            let (rows, next) = split(page);
            all.extend(rows.into_iter().map(|row| -> T { row.read() }));
            page_token = next;
            if page_token.is_empty() {
                break;
            }
        }
        all.truncate(max);
        Ok(all)
    }
}

/// The rows to ask for of a page where so many are wanted still.
fn page_rows(left: usize) -> u32 {
    u32::try_from(left)
        .unwrap_or(PAGE_ROWS_MAX)
        .min(PAGE_ROWS_MAX)
}

/// Most rows of a page.
const PAGE_ROWS_MAX: u32 = 100;
