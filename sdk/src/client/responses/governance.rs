//! Responses to operators and auditors: policy, agents, freezes, tasks, explanations, statistics and timelines.

use std::collections::BTreeMap;

use super::{ReadWire, responses};
use crate::model::{Digest, Target, Timestamp};
use crate::proto::v1;

/// The files of a policy bundle, which have its version: the client verified it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyBundleContent {
    /// The version.
    pub version: Digest,
    /// The texts of the files, by their paths inside the bundle.
    pub files: BTreeMap<String, String>,
}

responses! {
    /// What applying a policy bundle changed.
    AppliedBundle from ApplyPolicyBundleResponse {
        /// The bundle's version: its digest.
        version: String = version,
        /// `false`: the bundle was in force already.
        changed: bool = changed,
        /// Rules in it.
        rules: u32 = rules,
        /// Agents in it.
        agents: u32 = agents,
        /// What is allowed but probably not meant.
        warnings: Vec<String> = warnings,
        /// Tasks that it no longer allows, ended.
        tasks_ended: u32 = tasks_ended,
        /// Tokens that it no longer allows, revoked.
        tokens_ended: u32 = tokens_ended,
        /// Access requests closed.
        access_requests_closed: u32 = access_requests_closed,
        /// What it changed for people, each in one sentence.
        people: Vec<String> = people,
        /// The proposal that waits for others to agree, by the rule of changes in force; empty when the bundle is in force.
        access_request_id: String = access_request_id,
        /// When the proposal expires.
        expires_at: Option<Timestamp> = expires_at,
    }

    /// The policy bundle in force, and the proposals that wait.
    PolicyStatus from ListPolicyBundlesResponse {
        /// The bundle in force; empty while there is none.
        in_force: Vec<PolicyBundleInfo> = bundles,
        /// Proposals, by their expiry.
        proposals: Vec<PolicyProposalInfo> = proposals,
        /// How many more proposals wait.
        proposals_left_out: u32 = proposals_left_out,
    }

    /// A policy bundle that came in force.
    PolicyBundleInfo from PolicyBundleInForce {
        /// Its version: its digest.
        version: String = version,
        /// When it came in force.
        since: Option<Timestamp> = since,
        /// `seed`, `alone`, `agreed` or `recovery`.
        how: String = how,
        /// The operator, by opaque id; empty for a seed and a recovery.
        by: String = by,
        /// The proposal that others agreed to; empty without one.
        access_request_id: String = access_request_id,
        /// Why the operators were recovered; empty without a recovery.
        recovery_reason: String = recovery_reason,
        /// The user of the broker's host who recovered them, unverified; empty without a recovery.
        recovery_host_user: String = recovery_host_user,
        /// Index of the journal entry.
        position: u64 = position,
    }

    /// A proposal of a policy bundle that waits.
    PolicyProposalInfo from PolicyProposal {
        /// Its id.
        access_request_id: String = access_request_id,
        /// The version that it would put in force.
        version: String = version,
        /// The proposer, by opaque id.
        by: String = by,
        /// When it was opened.
        opened_at: Option<Timestamp> = opened_at,
        /// When it expires.
        expires_at: Option<Timestamp> = expires_at,
    }

    /// What a suspension ended.
    SuspensionReport from SuspendAgentResponse {
        /// Tasks ended, with their tokens.
        tasks_ended: u32 = tasks_ended,
        /// Index of the journal entry: validators that have read this far refuse every token of the agent.
        position: u64 = position,
    }

    /// An agent: its registration, its status and its use.
    AgentInfo from RegisteredAgent {
        /// Its id.
        agent_id: String = agent_id,
        /// `false`: the policy bundle in force does not list it, and the fields up to `actions` are empty.
        registered: bool = registered,
        /// The workload that may act as it.
        spiffe_id: String = spiffe_id,
        /// The person who answers for it, by opaque id.
        owner: String = owner,
        /// Where it runs.
        environment: String = environment,
        /// The model behind it.
        model: String = model,
        /// How far it acts alone.
        autonomy: String = autonomy,
        /// Its groups.
        groups: Vec<String> = groups,
        /// Thumbprint of the only key its tasks may be bound to; empty when any key may be.
        jkt: String = jkt,
        /// Its ceiling: the only actions it may request.
        actions: Vec<String> = actions,
        /// Whether it is suspended.
        suspended: bool = suspended,
        /// Freezes in force that stop it: `all`, `agent/ID`, `owner/ID`.
        frozen: Vec<String> = frozen,
        /// Its running tasks.
        tasks_running: u32 = tasks_running,
        /// Its active tokens.
        tokens_active: u32 = tokens_active,
        /// When this broker process last verified its evidence.
        verified_at: Option<Timestamp> = verified_at,
        /// When its evidence was last verified, by the journal.
        attested_at: Option<Timestamp> = attested_at,
        /// Its use of each action, the most requested first; empty in a list of agents.
        activity: Vec<AgentActionStats> = activity,
        /// How many groups, actions and rows of activity the broker left out because they exceed the message size.
        left_out: u32 = left_out,
    }

    /// An agent's use of one action, counted.
    AgentActionStats from ActionUse {
        /// The action.
        action: String = action,
        /// Whether the agent's ceiling has the action today.
        in_ceiling: bool = in_ceiling,
        /// Requests that were decided; 0: never used.
        requested: u64 = requested,
        /// Tokens issued.
        granted: u64 = granted,
        /// Requests that rules denied.
        refused: u64 = refused,
        /// Access requests that people approved.
        approved: u64 = approved,
        /// Access requests that people denied.
        denied: u64 = denied,
        /// Access requests that expired.
        expired: u64 = expired,
        /// The last request.
        last_at: Option<Timestamp> = last_at,
        /// The last denial by a person.
        last_denied_at: Option<Timestamp> = last_denied_at,
        /// That person, by opaque id; empty without one.
        last_denied_by: String = last_denied_by,
    }

    /// What a freeze ended.
    FreezeReport from FreezeResponse {
        /// `false`: the scope was frozen already.
        changed: bool = changed,
        /// Index of the journal entry: validators that have read this far refuse every token it ended.
        position: u64 = position,
        /// Tasks ended.
        tasks_ended: u32 = tasks_ended,
        /// Tokens revoked.
        tokens_ended: u32 = tokens_ended,
        /// Access requests closed.
        access_requests_closed: u32 = access_requests_closed,
    }

    /// A freeze in force.
    FreezeInfo from ActiveFreeze {
        /// `all`, `agent/ID`, `owner/ID` or `action/NAME`.
        scope: String = scope,
        /// Since when.
        since: Option<Timestamp> = since,
        /// The operator who ordered it, by opaque id.
        by: String = by,
        /// The operator's reason.
        reason: String = reason,
        /// Index of the journal entry.
        position: u64 = position,
    }

    /// What an order of a fact came to.
    FactReport from SetFactResponse {
        /// `false`: the fact had this value before, or a proposal waits.
        changed: bool = changed,
        /// When the fact is its normal value again; absent for that, and while a proposal waits.
        until: Option<Timestamp> = until,
        /// The proposal that waits for others to agree; empty when the fact has the value.
        access_request_id: String = access_request_id,
        /// When the proposal expires.
        expires_at: Option<Timestamp> = expires_at,
    }

    /// A named fact of the policy bundle in force.
    FactInfo from Fact {
        /// Its name: rules read `context.facts.NAME`.
        name: String = name,
        /// What it says when it is true.
        title: String = title,
        /// Its value now.
        value: bool = value,
        /// The value that one operator alone may set.
        safe: bool = safe,
        /// Its value while no other one is set.
        normal: bool = normal,
        /// The longest time that another value than the normal one may stand, in seconds.
        max: Option<i64> = max,
        /// Whether tokens end that the rules would not issue with its present value.
        ends: bool = ends,
        /// The rules that read it, by id.
        rules: Vec<String> = rules,
        /// Since when it has another value than its normal one.
        since: Option<Timestamp> = since,
        /// Until when.
        until: Option<Timestamp> = until,
        /// The operator who set it, by opaque id; empty while it has its normal value.
        by: String = by,
        /// That operator's reason; empty without one, and for a proposal.
        reason: String = reason,
        /// The approved proposal by which it was set; empty without one.
        approved_by: String = approved_by,
        /// Proposals to set it that wait.
        proposals: Vec<String> = proposals,
    }

    /// A task in a list.
    TaskInfo from TaskSummary {
        /// Its id.
        task_id: String = task_id,
        /// The agent that opened it.
        agent_id: String = agent_id,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// When it was opened.
        opened_at: Option<Timestamp> = opened_at,
        /// When it ends by itself.
        deadline: Option<Timestamp> = deadline,
        /// When a missed heartbeat ends it; `None` without a heartbeat.
        lease_until: Option<Timestamp> = lease_until,
        /// Why it ended; empty while it runs.
        ended: String = ended,
        /// Its active tokens.
        tokens_active: u32 = tokens_active,
        /// Its waiting access requests.
        access_requests_waiting: u32 = access_requests_waiting,
        /// The agent's own words, unverified; at most 200 characters of them.
        purpose: String = purpose,
    }

    /// Why something is as it is: the answer of `explain`.
    Explanation from ExplainResponse {
        /// The answer in one line.
        headline: String = headline,
        /// The details.
        lines: Vec<ExplanationLine> = lines,
        /// The journal entries it rests on, each as JSON.
        entries: Vec<String> = entries,
        /// What rules saw, for an id with a decision of gate 2, as of the policy bundle that decided.
        input: Option<RuleInputInfo> = input,
        /// Of a denial because no rule allows it: the permit that came closest.
        nearest_permit: Option<NearestPermitInfo> = nearest_permit,
        /// Of a denial because rules could not be evaluated: what could not.
        rule_failures: Vec<RuleFailureInfo> = rule_failures,
        /// Of a denial by the agent's ceiling: what the agent may request.
        ceiling: Option<CeilingMissInfo> = ceiling,
    }

    /// What rules saw. Long values are cut, and say by how much.
    RuleInputInfo from RuleInput {
        /// Version of the policy bundle that decided.
        policy_version: String = policy_version,
        /// Whether it is in force.
        policy_in_force: bool = policy_in_force,
        /// The agent; empty when the policy bundle can no longer be read.
        agent_id: String = agent_id,
        /// The agent's attributes and groups.
        agent: Option<RuleEntityInfo> = agent,
        /// The action.
        action: String = action,
        /// The target.
        target: Option<Target> = target,
        /// The target's attributes and groups; `None` for a target that the policy bundle does not have.
        target_entity: Option<RuleEntityInfo> = target_entity,
        /// The audience.
        audience: String = audience,
        /// The parameters as JSON; sensitive ones as `commitment …`.
        parameters: Vec<RuleValueInfo> = parameters,
        /// Lifetime that the token would have, in milliseconds.
        ttl_ms: i64 = ttl_ms,
        /// Profiles that votes satisfied.
        approvals: Vec<String> = approvals,
        /// The kind of the evidence.
        evidence_kind: String = evidence_kind,
        /// Milliseconds since the issuer issued the evidence; `None` when it does not say when, and counts as issued in 1970.
        evidence_issued_age_ms: Option<i64> = evidence_issued_age_ms,
        /// Milliseconds since the broker last verified the evidence.
        evidence_verified_age_ms: i64 = evidence_verified_age_ms,
        /// How the token is bound to its holder.
        binding: String = binding,
        /// Milliseconds since the task was opened.
        task_age_ms: i64 = task_age_ms,
        /// Milliseconds for which the access request had waited without a no; 0 before its delay was over.
        waited_ms: i64 = waited_ms,
        /// The time of the decision.
        now: Option<Timestamp> = now,
        /// Attributes, groups and parameters that are left out.
        left_out: u32 = left_out,
        /// The time in each zone of the bundle's calendar, such as `berlin: monday, 14:05, no holiday`.
        local: Vec<String> = local,
        /// The agent that would execute what an advisory agent recommends; empty for any other request.
        executor: String = executor,
        /// The named facts that rules in scope read, such as `change_freeze: true`.
        facts: Vec<String> = facts,
        /// The counts that rules in scope read, as they were before this decision, such as `deletions: 2`.
        counts: Vec<String> = counts,
    }

    /// An agent or a target as rules see it, in Cedar's notation.
    RuleEntityInfo from RuleEntity {
        /// Its attributes.
        attributes: Vec<RuleValueInfo> = attributes,
        /// The groups it is in, at any depth.
        groups: Vec<String> = groups,
    }

    /// A name and a value.
    RuleValueInfo from RuleValue {
        /// The name, or the path as in `principal.environment`.
        name: String = name,
        /// The value.
        value: String = value,
    }

    /// The permit that came closest to allowing a request.
    NearestPermitInfo from NearestPermit {
        /// Its `@id`.
        rule_id: String = rule_id,
        /// Its path in the policy bundle.
        file: String = file,
        /// Its line, from 1.
        line: u32 = line,
        /// The parts that exclude the request.
        misses: Vec<PermitMissInfo> = misses,
    }

    /// A part of a permit that excludes a request.
    PermitMissInfo from PermitMiss {
        /// `principal`, `action`, `resource`, `when` or `unless`.
        part: String = part,
        /// What it asks for, in Cedar's notation.
        clause: String = clause,
        /// Why it could not be evaluated; empty where it is not met.
        error: String = error,
        /// What it read.
        values: Vec<RuleValueInfo> = values,
    }

    /// A rule that could not be evaluated.
    RuleFailureInfo from RuleFailure {
        /// Its `@id`; empty when the request itself was invalid.
        rule_id: String = rule_id,
        /// Its path in the policy bundle.
        file: String = file,
        /// Its line, from 1.
        line: u32 = line,
        /// The error.
        error: String = error,
    }

    /// What an agent may request, where it requested something else.
    CeilingMissInfo from CeilingMiss {
        /// The nearest action; empty when none is near.
        nearest: String = nearest,
        /// The actions by name, at most 40.
        actions: Vec<String> = actions,
        /// How many more there are.
        left_out: u32 = left_out,
    }

    /// One detail of an explanation.
    ExplanationLine from ExplainLine {
        /// What it is about.
        label: String = label,
        /// The detail.
        text: String = text,
    }

    /// A rule in force, with statistics of its decisions.
    RuleStatistics from RuleStats {
        /// Its `@id`.
        rule_id: String = rule_id,
        /// Its path in the policy bundle.
        file: String = file,
        /// Its line, from 1.
        line: u32 = line,
        /// Its `@why`.
        why: String = why,
        /// `permit` or `forbid`.
        kind: String = kind,
        /// What lifts it: `step_up PROFILE` or `max_ttl SECONDSs`; empty when nothing does.
        remedy: String = remedy,
        /// Decisions of gate 2 that it determined.
        matches: u64 = matches,
        /// Access requests that it opened.
        step_ups: u64 = step_ups,
        /// Those that people approved.
        approved: u64 = approved,
        /// Of those approved: with at least one vote by a registered key instead of a passkey.
        approved_by_key: u64 = approved_by_key,
        /// Those that people denied.
        denied: u64 = denied,
        /// Those that expired.
        expired: u64 = expired,
        /// Share of approvals among those decided, in percent, rounded down; `None` when none was decided.
        approved_percent: Option<u32> = approved_percent,
        /// Median of the last 101 decision times, in seconds.
        median_seconds: Option<u32> = median_seconds,
        /// Its last decision.
        last_at: Option<Timestamp> = last_at,
        /// At least 20 decided, more than 95 % approved, in a median below 3 s.
        rubber_stamp: bool = rubber_stamp,
    }

    /// An approver's votes, counted.
    ApproverStatistics from ApproverStats {
        /// The opaque id.
        person_id: String = person_id,
        /// Empty when the policy bundle in force does not list the person.
        name: String = name,
        /// Approvals.
        approved: u64 = approved,
        /// Approvals by a registered key; the others are by passkey.
        approved_by_key: u64 = approved_by_key,
        /// Denials.
        denied: u64 = denied,
        /// Share of approvals, in percent, rounded down; `None` without a vote.
        approved_percent: Option<u32> = approved_percent,
        /// Median of the last 101 decision times, in seconds.
        median_seconds: Option<u32> = median_seconds,
        /// The last vote.
        last_at: Option<Timestamp> = last_at,
        /// At least 20 votes, more than 95 % approvals, in a median below 3 s.
        rubber_stamp: bool = rubber_stamp,
    }

    /// The history of a task.
    TaskTimeline from GetTimelineResponse {
        /// The task.
        task_id: String = task_id,
        /// Its agent.
        agent_id: String = agent_id,
        /// The agent's owner, by opaque id.
        owner: String = owner,
        /// Why it ended; empty while it runs.
        ended: String = ended,
        /// Its events, in order of time.
        entries: Vec<TimelineEntry> = events,
        /// Journal entries in the midst of a very long task that are left out.
        left_out: u64 = left_out,
    }

    /// One event of a timeline or of a search.
    TimelineEntry from TimelineEvent {
        /// Index of its journal entry; `None` for what time alone brought.
        index: Option<u64> = index,
        /// When it happened.
        at: Option<Timestamp> = at,
        /// The kind of the journal entry; empty for what time alone brought.
        kind: String = kind,
        /// What happened.
        what: String = what,
        /// An agent, a person, a service, or `broker`.
        who: String = who,
        /// More of it.
        detail: String = detail,
        /// Ids to search on with.
        ids: Vec<String> = ids,
    }

    /// One page of a journal search.
    JournalSearchPage from SearchJournalResponse {
        /// The newest first; at most 50.
        entries: Vec<TimelineEntry> = events,
        /// `below` of the next page; `None` at the journal's beginning. A page with few entries is not the last while this is
        /// there.
        next: Option<u64> = next,
    }
}
