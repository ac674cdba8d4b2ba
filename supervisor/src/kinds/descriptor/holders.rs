//! Which descriptors lead to a description, for what is decided by their numbers and for reports.

use super::own_tables;
use crate::error::Result;
use std::collections::HashMap;
use vckpt_image_format::{DescriptionId, Image};

/// The descriptors of all descriptions of an image.
#[derive(Debug, Clone)]
pub struct Holders(HashMap<DescriptionId, Vec<Holder>>);

/// A descriptor.
#[derive(Debug, Clone)]
struct Holder {
    /// The process, as people call it.
    process: String,
    number: u32,
}

impl Holders {
    /// Those of an image.
    ///
    /// # Errors
    /// As [`own_tables`].
    pub fn of(image: &Image) -> Result<Self> {
        let mut found: HashMap<DescriptionId, Vec<Holder>> = HashMap::new();
        for (process, table) in own_tables(image)? {
            let name = format!("process {} ({})", process.id, process.command);
            for descriptor in &table.descriptors {
                let holder = Holder { process: name.clone(), number: descriptor.number };
                found.entry(descriptor.description).or_default().push(holder);
            }
        }
        Ok(Self(found))
    }

    /// The numbers under which processes have a description.
    pub fn numbers(&self, description: DescriptionId) -> impl Iterator<Item = u32> {
        self.0.get(&description).into_iter().flatten().map(|holder| holder.number)
    }

    /// Who has a description, such as `process 7 (cat), fd 3 and 2 more`.
    #[must_use]
    pub fn name(&self, description: DescriptionId) -> String {
        let holders = self.0.get(&description).map(Vec::as_slice).unwrap_or_default();
        let Some(first) = holders.first() else { return format!("description {description}") };
        let more = if holders.len() > 1 { format!(" and {} more", holders.len() - 1) } else { String::new() };
        format!("{}, fd {}{more}", first.process, first.number)
    }
}
