//! An agent with an open task: requests, approvals and tokens in one call each.

use dipylon_sdk::model::*;

use crate::support::*;

pub const GOVERNANCE: &str = "dipylon.v1.GovernanceService";

pub fn name(text: &str) -> ActionName {
    ActionName::parse(text).expect("name")
}

pub fn agent_id(text: &str) -> AgentId {
    AgentId::parse(text).expect("id")
}

pub fn person_id(text: &str) -> PersonId {
    PersonId::parse(text).expect("id")
}

pub struct AgentInTask {
    pub agent: TestAgent,
    pub task: TaskId,
    pub requests: usize,
}

impl AgentInTask {
    pub async fn new(b: &TestBroker, id: &str) -> Self {
        let agent = b.agent(id);
        let task = b.open_task(&agent).await;
        Self {
            agent,
            task,
            requests: 0,
        }
    }

    pub async fn pending(&mut self, b: &TestBroker, action: &Action) -> AccessRequestId {
        self.requests += 1;
        let request = format!("h-{}", self.requests);
        let evidence = Some(b.svid(&self.agent));
        let reply =
            b.request_token_with_evidence(&self.agent, self.task, action, 60, &request, evidence);
        reply.await.pending().access_request
    }

    pub async fn token(&self, b: &TestBroker, action: &Action) -> TokenId {
        let request = format!("h-{}", self.requests);
        let evidence = Some(b.svid(&self.agent));
        let reply =
            b.request_token_with_evidence(&self.agent, self.task, action, 60, &request, evidence);
        reply.await.token().issued.jti
    }

    /// Requested, approved by maria after `seconds`, and minted.
    pub async fn approved(&mut self, b: &TestBroker, action: &Action, seconds: u32) -> TokenId {
        let id = self.pending(b, action).await;
        b.manual_clock.advance_millis(seconds * 1_000);
        b.approve("maria", id, "one-security").await;
        self.token(b, action).await
    }
}

/// One task with every event: requested, denied, approved, used, revoked, expired, ended.
pub async fn full_life(b: &TestBroker) -> AgentInTask {
    let mut agent_in_task = AgentInTask::new(b, "triage").await;
    let id = agent_in_task.pending(b, &disable("ann")).await;
    b.vote("dana", id, "one-security", Verdict::Approve)
        .await
        .expect_err("the owner cannot vote");
    b.manual_clock.advance_millis(4_000);
    b.approve("maria", id, "one-security").await;
    let (evidence, ann) = (Some(b.svid(&agent_in_task.agent)), disable("ann"));
    let reply = b.request_token_with_evidence(
        &agent_in_task.agent,
        agent_in_task.task,
        &ann,
        60,
        "h-1",
        evidence,
    );
    let token = reply.await.token();
    b.consume("idp", &token.token, "use-1").await.expect("used");
    let note = action(
        "case.note",
        "Case",
        "INC-8841",
        CASES,
        &[("text", Param::Str("CANARY words".to_owned()))],
    );
    agent_in_task.requests += 1;
    let noted = agent_in_task.token(b, &note).await;
    b.revoke(noted).await.expect("revoked");
    agent_in_task.requests += 1;
    agent_in_task.token(b, &read_case()).await;
    b.manual_clock.advance_millis(90_000);
    b.complete_task(&agent_in_task.agent, agent_in_task.task)
        .await
        .expect("ends");
    agent_in_task
}
