//! The generations of an app that answer new requests: the live one, and those beside it that are
//! reached by their label.

use std::{sync::Arc, time::Instant};

use handover_api::{GenerationId, Label};

use super::app::Live;
use crate::{
    config::Labels,
    dispatch::{ByLabel, Targets},
    generation::Generation,
};

/// What answers new requests of an app.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    member: Option<Live>,
    /// In the order in which they came up.
    labelled: Vec<Labelled>,
}

/// A generation that is up beside the live one.
#[derive(Debug)]
pub(crate) struct Labelled {
    /// What it answers to. Each label is there once.
    pub(crate) label: Label,
    /// The generation.
    pub(crate) live: Live,
    /// When it is ended; none: when somebody says so.
    pub(crate) until: Option<Instant>,
}

impl Labelled {
    /// Returns the number of its generation.
    pub(crate) fn id(&self) -> GenerationId {
        self.live.active.generation().spec().id
    }
}

impl Serving {
    /// Returns the member that gets what nothing else asks for.
    pub(crate) fn primary(&self) -> Option<&Live> {
        self.member.as_ref()
    }

    /// Returns the same, to be changed.
    pub(crate) fn primary_mut(&mut self) -> Option<&mut Live> {
        self.member.as_mut()
    }

    /// Returns the generation of [`primary`](Self::primary).
    pub(crate) fn generation(&self) -> Option<&Arc<Generation>> {
        self.primary().map(|live| live.active.generation())
    }

    /// Returns those beside it, in the order in which they came up.
    pub(crate) fn labelled(&self) -> &[Labelled] {
        &self.labelled
    }

    /// Returns every member.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Live> {
        let labelled = self.labelled.iter().map(|labelled| &labelled.live);
        labelled.chain(&self.member)
    }

    /// Returns whether nothing answers.
    pub(crate) fn is_empty(&self) -> bool {
        self.member.is_none() && self.labelled.is_empty()
    }

    /// Puts `next` in the place of the primary member. Returns who is replaced.
    pub(crate) fn replace(&mut self, next: Option<Live>) -> Option<Live> {
        std::mem::replace(&mut self.member, next)
    }

    /// Adds a member beside the primary one. The caller has taken whoever had its label.
    pub(crate) fn add(&mut self, labelled: Labelled) {
        self.labelled.push(labelled);
    }

    /// Takes the member that `is_it` out. Returns it if it is there.
    pub(crate) fn take(&mut self, is_it: impl Fn(&Labelled) -> bool) -> Option<Labelled> {
        let at = self.labelled.iter().position(is_it)?;
        Some(self.labelled.remove(at))
    }

    /// Returns where a route of the app sends requests, whose labels are chosen as `labels` says.
    pub(crate) fn targets(&self, labels: &Arc<Labels>) -> Targets {
        let live = self.generation().map(Arc::clone);
        if !self.labelled.is_empty() && !labels.allow.is_empty() {
            let members = self.labelled.iter().map(|labelled| {
                let generation = Arc::clone(labelled.live.active.generation());
                (labelled.label.clone(), generation)
            });
            return Targets::Labelled(Arc::new(ByLabel {
                live,
                labelled: members.collect(),
                allow: Arc::clone(labels),
            }));
        }
        live.map_or(Targets::None, Targets::One)
    }
}
