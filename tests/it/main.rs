//! Integration tests of the broker through its public interfaces: one binary, one file for each feature.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod access_request_lifecycle;
mod admission;
mod adversarial_review;
mod answer_size;
mod approval_limits;
mod approval_rounds;
mod architecture;
mod audit;
mod audit_votes;
mod authorization_matrix;
mod bad_input;
#[path = "../../benches/broker/mod.rs"]
mod benchmarks;
mod bootstrap_code;
mod browser;
mod card;
mod change_by_two;
mod claims;
mod cli;
mod clock;
mod concurrency;
mod config_commands;
mod config_values;
mod confirmations;
mod connection_exhaustion;
mod console;
mod counts;
mod crash_recovery;
mod decision_stats;
mod delays;
mod demo;
mod docs;
mod doctor;
mod end_to_end;
mod entry_rules;
mod envoy;
mod error_details;
mod evidence;
mod evidence_ages;
mod exec;
mod explain;
mod facts;
mod fido2_crosscheck;
mod foreign_client;
mod forged_entries;
mod former_owner;
mod freeze;
mod generated_stubs;
mod golden;
mod health_watches;
mod heartbeats;
mod held_orders;
mod http_endpoints;
mod hung_disk;
mod inbox;
mod journal_schema;
mod key_votes;
mod live_tokens;
mod metrics;
mod nginx;
mod not_grpc;
mod one_holder;
mod orders;
#[cfg(feature = "otlp")]
mod otlp;
mod outages;
mod packaging;
mod page_tokens;
mod passkey_enrolment;
mod people_come_and_go;
mod policy_check;
mod policy_plan;
mod policy_tests;
mod policy_transcripts;
mod policy_versions;
mod properties;
mod quorums;
mod read_set_bound;
mod read_sets;
mod readiness;
mod reasons_doc;
mod receipts;
mod recommendations;
mod recover_operators;
mod refusal_counts;
mod refusal_logs;
mod registered_names;
mod repeated_calls;
mod request_command;
mod revoked_operator;
mod sdk_dependencies;
mod sdk_examples;
mod secrets;
mod setup_walkthrough;
mod shutdown_and_reload;
mod step_up;
mod support;
mod sweeps;
mod target_people;
mod timeline_and_search;
mod tls;
mod token_lifecycle;
mod transport;
mod trusted_files;
mod two_groups;
mod unforgeable_types;
mod unknown_outcome;
mod vectors;
mod verified_token_cache;
mod void_approvals;
mod voter_races;
mod watch_access_request;
mod watch_token;
mod weak_keys;
mod webauthn;
mod wire_vectors;
