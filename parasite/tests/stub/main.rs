//! The stub under test: its serve loop in this process, and the finished blob in processes of its own.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod puppet;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod support;
