//! Queries: inventories, the history of policy bundles, statistics, timelines, explanations, token receipts, the revocation feed.

pub(in crate::broker) mod decision_facts;
pub(in crate::broker) mod explain;
mod facts_lines;
pub(in crate::broker) mod inventory;
pub(in crate::broker) mod page_token;
pub(in crate::broker) mod policy_history;
pub(in crate::broker) mod receipt;
pub(in crate::broker) mod revocation_feed;
pub(in crate::broker) mod rules;
pub(in crate::broker) mod stats;
pub(in crate::broker) mod timeline;
pub(in crate::broker) mod timeline_page;
