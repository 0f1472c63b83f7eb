//! The command line: what every verb has in common, tasks of this machine, tokens in files, and messages.

mod json_output;
mod messages;
mod parameters;
pub mod setup;
mod tasks;
mod token_use;
mod unseen_card;
mod unwritable_output;
mod waiting;
