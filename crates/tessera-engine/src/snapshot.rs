//! An immutable picture of the world: nodes with usage, bookings, quotas. Taking one copies a few pointers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tessera_types::{Keyword, Mib, NodeName, PodUid};

use crate::booking::Booking;
use crate::index::Index;
use crate::node::NodeState;
use crate::pack::Packed;
use crate::quota::{Quotas, Room};
use crate::vendor::Vendors;

/// Nodes of one chunk. A change copies one chunk and the list of chunks, not all nodes.
pub(crate) const CHUNK: usize = 64;
/// Parts of the booking table.
const SHARDS: usize = 256;

pub(crate) type Chunk = Arc<Vec<Option<Arc<NodeState>>>>;
type Shard = Arc<BTreeMap<PodUid, Arc<Booking>>>;

/// Nodes by slot; slots are reused.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeTable {
    chunks: Arc<Vec<Chunk>>,
    names: Arc<Names>,
    free: Vec<usize>,
}

#[derive(Debug, Clone, Default)]
struct Names {
    slots: HashMap<NodeName, usize>,
    sorted: BTreeMap<NodeName, usize>,
}

impl NodeTable {
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<NodeState>> {
        self.at(*self.names.slots.get(name)?)
    }

    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub(crate) fn at(&self, slot: usize) -> Option<&Arc<NodeState>> {
        self.chunks.get(slot / CHUNK)?.get(slot % CHUNK)?.as_ref()
    }

    /// The node for changing; copied first if a snapshot still shows it.
    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut NodeState> {
        let slot = *self.names.slots.get(name)?;
        let chunk = Arc::make_mut(Arc::make_mut(&mut self.chunks).get_mut(slot / CHUNK)?);
        chunk.get_mut(slot % CHUNK)?.as_mut().map(Arc::make_mut)
    }

    pub(crate) fn insert(&mut self, node: NodeState) {
        let name = node.name().clone();
        let slot = match self.names.slots.get(&name) {
            Some(slot) => *slot,
            None => {
                let slot = self.free.pop().unwrap_or_else(|| self.names.slots.len());
                let names = Arc::make_mut(&mut self.names);
                names.slots.insert(name.clone(), slot);
                names.sorted.insert(name, slot);
                slot
            }
        };
        let chunks = Arc::make_mut(&mut self.chunks);
        while chunks.len() <= slot / CHUNK {
            chunks.push(Arc::new(Vec::new()));
        }
        let chunk = Arc::make_mut(&mut chunks[slot / CHUNK]);
        while chunk.len() <= slot % CHUNK {
            chunk.push(None);
        }
        chunk[slot % CHUNK] = Some(Arc::new(node));
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Arc<NodeState>> {
        let names = Arc::make_mut(&mut self.names);
        let slot = names.slots.remove(name)?;
        names.sorted.remove(name);
        self.free.push(slot);
        Arc::make_mut(Arc::make_mut(&mut self.chunks).get_mut(slot / CHUNK)?)
            .get_mut(slot % CHUNK)?
            .take()
    }

    /// In the order of names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<NodeState>> {
        self.names.sorted.values().filter_map(|slot| self.at(*slot))
    }

    pub(crate) fn len(&self) -> usize {
        self.names.slots.len()
    }
}

/// Bookings by pod uid.
#[derive(Debug, Clone)]
pub(crate) struct BookingTable(Arc<Vec<Shard>>);

impl Default for BookingTable {
    fn default() -> Self {
        Self(Arc::new(vec![Arc::default(); SHARDS]))
    }
}

impl BookingTable {
    fn shard(uid: &PodUid) -> usize {
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        usize::try_from(hasher.finish() % 256).unwrap_or(0) % SHARDS
    }

    pub(crate) fn get(&self, uid: &PodUid) -> Option<&Arc<Booking>> {
        self.0.get(Self::shard(uid))?.get(uid)
    }

    pub(crate) fn insert(&mut self, booking: Arc<Booking>) {
        let uid = booking.pod.uid.clone();
        if let Some(shard) = Arc::make_mut(&mut self.0).get_mut(Self::shard(&uid)) {
            Arc::make_mut(shard).insert(uid, booking);
        }
    }

    pub(crate) fn remove(&mut self, uid: &PodUid) -> Option<Arc<Booking>> {
        let at = Self::shard(uid);
        if !self.0.get(at)?.contains_key(uid) {
            return None;
        }
        Arc::make_mut(Arc::make_mut(&mut self.0).get_mut(at)?).remove(uid)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Booking>> {
        self.0.iter().flat_map(|shard| shard.values())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.len()).sum()
    }
}

/// An immutable picture of the world.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) vendors: Arc<Vendors>,
    pub(crate) nodes: NodeTable,
    pub(crate) bookings: BookingTable,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) version: u64,
    pub(crate) index: Arc<Index>,
    pub(crate) packed: Arc<Packed>,
}

impl Snapshot {
    /// Grows with every change of the world it was taken from.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The device classes.
    #[must_use]
    pub fn vendors(&self) -> &Arc<Vendors> {
        &self.vendors
    }

    /// A node by name. Nodes without any card are here too.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.get(name).map(|node| &**node)
    }

    /// All nodes in the order of names.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.iter().map(|node| &**node)
    }

    /// How many nodes there are.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// What a pod holds.
    #[must_use]
    pub fn booking(&self, uid: &PodUid) -> Option<&Booking> {
        self.bookings.get(uid).map(|booking| &**booking)
    }

    /// All bookings, in no order that means anything, but the same order every time.
    pub fn bookings(&self) -> impl Iterator<Item = &Booking> {
        self.bookings.iter().map(|booking| &**booking)
    }

    /// How many bookings there are.
    #[must_use]
    pub fn booking_count(&self) -> usize {
        self.bookings.len()
    }

    /// Quotas and their usage.
    #[must_use]
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// What a namespace's quota leaves of a class; `None` if nothing limits it.
    #[must_use]
    pub fn room(&self, namespace: &str, class: &Keyword) -> Option<Room> {
        self.quotas.room(namespace, self.vendors.get(class)?.names())
    }

    /// The sizes of the cards there are, by class.
    #[must_use]
    pub fn card_sizes(&self) -> BTreeMap<Keyword, BTreeSet<Mib>> {
        let mut sizes: BTreeMap<Keyword, BTreeSet<Mib>> = BTreeMap::new();
        for card in self.nodes().flat_map(NodeState::cards) {
            match sizes.get_mut(&card.class) {
                Some(of_class) => {
                    of_class.insert(card.memory);
                }
                None => {
                    sizes.insert(card.class.clone(), BTreeSet::from([card.memory]));
                }
            }
        }
        sizes
    }

    /// Whether some node offers an extended resource that no class manages: a plain device plugin is there for it.
    #[must_use]
    pub fn offers(&self, resource: &str) -> bool {
        self.nodes()
            .any(|node| node.facts.others.iter().any(|name| **name == *resource))
    }

    /// The largest number of cards of a class on any node.
    #[must_use]
    pub fn cards_max(&self, class: &Keyword) -> usize {
        self.nodes()
            .filter_map(|node| node.class(class))
            .map(|on_node| on_node.cards.len())
            .max()
            .unwrap_or(0)
    }
}
