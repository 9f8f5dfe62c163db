//! What is done for each kind of request, by what it works on.

mod attributes;
mod directories;
mod files;
mod names;
