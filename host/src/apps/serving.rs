//! The generations of an app that answer new requests: the live one, and those beside it that are
//! reached by their label.

use std::{sync::Arc, time::Instant};

use handover_api::{GenerationId, Label};

use super::app::Live;
use crate::{
    canary::Course,
    config,
    dispatch::{ByTenant, Mirror, OnTrial, Several, Targets},
    generation::{Generation, Role},
};

/// What answers new requests of an app.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    member: Option<Live>,
    /// In the order in which they came up.
    labelled: Vec<Labelled>,
    /// The one of those that gets a share of the requests.
    canary: Option<Canary>,
    /// The one of those that gets copies of requests.
    mirror: Option<Arc<Mirror>>,
    /// Those that were live and have tenants still, oldest first.
    staying: Vec<Live>,
}

/// A generation on trial, which is up under a label as well.
#[derive(Clone, Debug)]
pub(crate) struct Canary {
    /// What requests need of it.
    pub(crate) on_trial: OnTrial,
    /// Where the trial is.
    pub(crate) course: Arc<Course>,
}

impl Canary {
    /// Returns the number of its generation.
    pub(crate) fn id(&self) -> GenerationId {
        self.on_trial.generation.spec().id
    }
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
        self.staying.iter().chain(labelled).chain(&self.member)
    }

    /// Returns whether nothing answers.
    pub(crate) fn is_empty(&self) -> bool {
        self.member.is_none() && self.labelled.is_empty() && self.staying.is_empty()
    }

    /// Has a member that was live stay for its tenants.
    pub(crate) fn stay(&mut self, live: Live) {
        self.staying.push(live);
    }

    /// Returns those that stay for their tenants, oldest first.
    pub(crate) fn staying(&self) -> &[Live] {
        &self.staying
    }

    /// Takes out the one that stays and has the number `id`, or any without one.
    pub(crate) fn take_staying(&mut self, id: Option<GenerationId>) -> Option<Live> {
        let is_it = |live: &Live| id.is_none_or(|id| live.active.generation().spec().id == id);
        let at = self.staying.iter().position(is_it)?;
        Some(self.staying.remove(at))
    }

    /// Puts `next` in the place of the primary member. Returns who is replaced.
    pub(crate) fn replace(&mut self, next: Option<Live>) -> Option<Live> {
        std::mem::replace(&mut self.member, next)
    }

    /// Adds a member beside the primary one. The caller has taken whoever had its label.
    pub(crate) fn add(&mut self, labelled: Labelled) {
        self.labelled.push(labelled);
    }

    /// Gives a share of the requests to a member that has a label, until that is taken out.
    pub(crate) fn put_on_trial(&mut self, canary: Canary) {
        self.canary = Some(canary);
    }

    /// Has copies of requests go to a member that has a label, until that is taken out.
    pub(crate) fn copy_to(&mut self, mirror: Arc<Mirror>) {
        self.mirror = Some(mirror);
    }

    /// Returns what gets copies of requests.
    pub(crate) fn mirror(&self) -> Option<&Arc<Mirror>> {
        self.mirror.as_ref()
    }

    /// Returns what is on trial.
    pub(crate) fn canary(&self) -> Option<&Canary> {
        self.canary.as_ref()
    }

    /// Takes the member that `is_it` out. Returns it if it is there.
    pub(crate) fn take(&mut self, is_it: impl Fn(&Labelled) -> bool) -> Option<Labelled> {
        let at = self.labelled.iter().position(is_it)?;
        let taken = self.labelled.remove(at);
        self.canary.take_if(|canary| canary.id() == taken.id());
        self.mirror
            .take_if(|mirror| mirror.generation.spec().id == taken.id());
        Some(taken)
    }

    /// Tells each member what it is to the requests that come.
    pub(crate) fn assign_roles(&self) {
        for live in self.staying.iter().chain(&self.member) {
            live.active.generation().set_role(Role::Live);
        }
        for labelled in &self.labelled {
            let is_canary = self
                .canary()
                .is_some_and(|canary| canary.id() == labelled.id());
            let role = if is_canary { Role::Canary } else { Role::Label };
            labelled.live.active.generation().set_role(role);
        }
    }

    /// Returns where a route of an app with `settings` sends requests.
    pub(crate) fn targets(&self, settings: &config::App) -> Targets {
        let live = self.generation().map(Arc::clone);
        let labels = &settings.labels;
        let by_label = !self.labelled.is_empty() && !labels.allow.is_empty();
        let tenants = settings.tenant.when_idle().map(|from| {
            for live in self.members() {
                live.active.generation().tenants().begin();
            }
            let staying = self.staying.iter();
            ByTenant {
                from: from.clone(),
                staying: staying
                    .map(|live| Arc::clone(live.active.generation()))
                    .collect(),
            }
        });
        if by_label || self.canary.is_some() || self.mirror.is_some() || tenants.is_some() {
            let members = self.labelled.iter().map(|labelled| {
                let generation = Arc::clone(labelled.live.active.generation());
                (labelled.label.clone(), generation)
            });
            return Targets::Several(Arc::new(Several {
                live,
                labelled: members.collect(),
                allow: Arc::clone(labels),
                mirror: self.mirror.clone(),
                on_trial: self.canary.as_ref().map(|canary| canary.on_trial.clone()),
                tenants,
            }));
        }
        live.map_or(Targets::None, Targets::One)
    }
}
