//! Dipylon.
pub mod approve;
pub mod audit;
pub mod broker;
pub mod client;
pub mod clock;
pub mod config;
pub mod jose;
pub mod journal;
pub mod keys;
pub mod mint;
pub mod model;
pub mod proto;
pub mod rules;
pub mod serve;
pub mod state;
pub mod validator;
pub mod verify;
