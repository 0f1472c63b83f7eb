//! Dipylon's stories, told through its doors. One binary; one file for each story.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod audit;
mod bad_input;
mod crosscheck;
mod demo;
mod doors;
mod evidence;
#[path = "../../benches/figures/mod.rs"]
mod figures;
mod front_door;
mod gates;
mod golden;
mod harness;
mod hostile;
mod house;
mod kill;
mod laws;
mod parallel;
mod properties;
mod readings;
mod secrets;
mod served;
mod spine;
mod vectors;
