//! Dipylon's stories, told through its doors. One binary; one file for each story.

mod bad_input;
mod crosscheck;
mod doors;
mod evidence;
mod front_door;
mod gates;
mod golden;
mod harness;
mod kill;
mod laws;
mod parallel;
mod properties;
mod served;
mod spine;
mod vectors;
