//! Who may share a card with whom: the QoS policy of its shares and the priority class of their pods.
//!
//! Both are read off the pods on the card, not remembered: a card whose pods have gone is free for any policy, and a
//! restarted scheduler knows as much as before.

use std::collections::BTreeMap;

use tessera_engine::NodeState;
use tessera_types::{Cores, Keyword, ReasonKind, WHOLE_CARD_CORES};

/// Of [`Company::facts`] and the selection: the QoS policy.
pub(super) const QOS: &str = "qos";
/// Of [`Company::facts`] and the selection: the priority class.
pub(super) const APP: &str = "app-class";
/// Of a card's own members: the policy that its node says it runs under.
pub(super) const CARD_QOS: &str = "QosPolicy";

/// Priority class of a pod. Anything else written is no class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum App {
    /// Served first; suspends offline pods on its card.
    Online,
    /// Runs while no online pod does.
    Offline,
}

impl App {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "online" => Some(Self::Online),
            "offline" => Some(Self::Offline),
            _ => None,
        }
    }
}

/// How many pods of each priority class are on a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Crowd {
    pub(super) pods: u32,
    pub(super) online: u32,
    pub(super) offline: u32,
}

impl Crowd {
    /// Of the card at `position`.
    pub(super) fn on(node: &NodeState, position: usize, class: &Keyword) -> Self {
        let mut crowd = Self::default();
        for booking in node.tenants(position) {
            crowd.pods += 1;
            let app = booking.facts.get(class).and_then(|facts| facts.get(APP));
            match app.and_then(|text| App::parse(text)) {
                Some(App::Online) => crowd.online += 1,
                Some(App::Offline) => crowd.offline += 1,
                None => {}
            }
        }
        crowd
    }

    /// Whether there are offline pods and no online ones.
    pub(super) fn only_offline(self) -> bool {
        self.online == 0 && self.offline > 0
    }
}

/// A pod that wants to join a card.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newcomer<'a> {
    pub(super) app: Option<App>,
    /// Empty if the pod states none.
    pub(super) qos: &'a str,
    /// Compute of its share.
    pub(super) cores: Cores,
}

impl<'a> Newcomer<'a> {
    pub(super) fn new(facts: impl Fn(&str) -> Option<&'a str>, cores: Cores) -> Self {
        Self {
            app: facts(APP).and_then(App::parse),
            qos: facts(QOS).unwrap_or_default(),
            cores,
        }
    }

    /// Whether it may join the pods on the card at `position`; `node` is without the newcomer's own bookings.
    ///
    /// # Errors
    /// The kind of reason against the card.
    pub(super) fn may_join(self, node: &NodeState, position: usize, class: &Keyword) -> Result<(), ReasonKind> {
        let crowd = Crowd::on(node, position, class);
        if crowd.pods == 0 {
            return Ok(());
        }
        let classed = crowd.online + crowd.offline > 0;
        if classed != self.app.is_some() || (self.app == Some(App::Offline) && crowd.online > 0) {
            return Err(ReasonKind::AppClassMismatch);
        }
        if self.app == Some(App::Online) || self.cores == WHOLE_CARD_CORES {
            return Ok(());
        }
        match policy(node, position, class) {
            Some(policy) if policy != self.qos => Err(ReasonKind::QosMismatch),
            _ => Ok(()),
        }
    }
}

/// The policy that the shares of a used card run under; `None` if that is open.
fn policy<'a>(node: &'a NodeState, position: usize, class: &Keyword) -> Option<&'a str> {
    let card = node.cards().get(position)?;
    let mut shared = false;
    for booking in node.tenants(position) {
        let facts = booking.facts.get(class);
        let fact = |name: &str| facts.and_then(|facts| facts.get(name)).map(String::as_str);
        let mut shares = booking.shares().filter(|(_, share)| share.card == card.id);
        // A card of its own is no share, and an online pod's share has no policy.
        if shares.any(|(_, share)| share.cores >= WHOLE_CARD_CORES)
            || fact(APP).and_then(App::parse) == Some(App::Online)
        {
            continue;
        }
        shared = true;
        if let Some(policy) = fact(QOS) {
            return Some(policy);
        }
    }
    let registered = card.custom.get(CARD_QOS).map(String::as_str);
    registered.filter(|policy| shared && !policy.is_empty())
}

/// What a pod's neighbours have to know of it.
pub(super) fn facts(qos: Option<&str>, app: Option<&str>) -> BTreeMap<String, String> {
    let stated = |name: &str, text: Option<&str>| {
        text.filter(|text| !text.is_empty())
            .map(|text| (name.to_owned(), text.to_owned()))
    };
    stated(QOS, qos).into_iter().chain(stated(APP, app)).collect()
}
