//! Dipylon.
pub mod approve;
pub mod audit;
pub mod broker;
pub mod clock;
pub mod jose;
pub mod journal;
pub mod mint;
pub mod model;
pub mod rules;
pub mod state;
pub mod verify;
