//! Dipylon's stories, told through its doors. One binary; one file for each story.

mod harness;
mod laws;
mod properties;
mod spine;
