//! The node on the bus: its topics, what arrives and what leaves.

use crate::logging::Throttle;
use crate::messages::{Image, LabelInfo};
use crate::names::Names;
use futures::channel::mpsc::UnboundedReceiver;
use futures::executor::block_on;
use futures::{StreamExt, pin_mut, select};
use ros2_client::qos::{Durability, History, WhenFull};
use ros2_client::{
    Context, MessageInfo, MessageTypeName, Name, Node, NodeOptions, Publisher, QosProfile, Subscription,
};
use rustdds::dds::statusevents::DomainParticipantStatusEvent as Event;
use rustdds::policy::{self, ResourceLimits};
use rustdds::{
    DomainParticipantBuilder, GUID, QosPolicies, QosPolicyBuilder, StatusEvented, Topic, TopicKind,
};
use serde::Serialize;
use std::collections::HashMap;
use std::net::IpAddr;

/// How results are sent: to subscribers that ask for reliable transport and to those that do not. The node
/// waits for none of them.
const RELIABLE: QosProfile = QosProfile::publisher_default()
    .reliability_reliable(WhenFull::Fail)
    .history(History::KeepLast { depth: 4 });

/// How results are sent that nobody wants late: as sensors' data.
const BEST_EFFORT: QosProfile = QosProfile::publisher_default().reliability_best_effort();

/// For what never changes: whoever comes later gets it, too.
const LATCHED: QosProfile = QosProfile::publisher_default().durability(Durability::TransientLocal);

/// The type of images.
const IMAGE: (&str, &str) = ("sensor_msgs", "Image");

/// Where the node is, and what it is called there.
pub struct Place<'a> {
    /// Only nodes of the same domain meet.
    pub domain: u16,
    /// The only addresses of this machine that are made known; empty: all.
    pub addresses: &'a [IpAddr],
    /// Node and topics.
    pub names: &'a Names,
    /// The topic of frames, before it is resolved.
    pub images: &'a str,
    /// Whether there is a topic of overlays.
    pub overlay: bool,
    /// Whether maps and overlays that are lost on the way are lost.
    pub best_effort: bool,
}

/// The node with its topics.
pub struct Bus {
    images: Subscription<Image>,
    /// What leaves.
    pub outputs: Outputs,
}

/// What the node publishes.
pub struct Outputs {
    /// Number of the object of each pixel.
    pub instances: Output<Image>,
    /// Class of each pixel.
    pub classes: Output<Image>,
    /// What the classes are called.
    pub label_info: Output<LabelInfo>,
    /// The frame with what was found.
    pub overlay: Option<Output<Image>>,
    /// Topics of the node's endpoints.
    topics: HashMap<GUID, String>,
    node: Node,
    context: Context,
}

impl Bus {
    /// Joins the domain.
    ///
    /// # Errors
    /// What the names or the network do not allow.
    pub fn open(place: &Place<'_>) -> Result<Bus, String> {
        let mut participant = DomainParticipantBuilder::new(place.domain);
        if !place.addresses.is_empty() {
            participant = participant.with_only_networks(place.addresses.iter().copied());
        }
        let cannot = |error: String| format!("cannot join domain {}: {error}", place.domain);
        let participant = participant.build().map_err(|error| cannot(error.to_string()))?;
        let context =
            Context::from_domain_participant(participant).map_err(|error| cannot(error.to_string()))?;
        let options = NodeOptions::new().enable_rosout(false);
        let node =
            context.new_node(place.names.node.clone(), options).map_err(|error| cannot(error.to_string()))?;
        let mut opening = Opening { names: place.names, node, context, topics: HashMap::new() };
        let images = opening.images(place.images)?;
        let results = if place.best_effort { BEST_EFFORT } else { RELIABLE };
        let (instances, classes) = (
            opening.output("instances", IMAGE, results.clone())?,
            opening.output("classes", IMAGE, results.clone())?,
        );
        let label_info = opening.output("label_info", ("vision_msgs", "LabelInfo"), LATCHED)?;
        let overlay =
            if place.overlay { Some(opening.output("overlay", IMAGE, results.clone())?) } else { None };
        let Opening { node, context, topics, .. } = opening;
        Ok(Bus {
            images,
            outputs: Outputs { instances, classes, label_info, overlay, topics, node, context },
        })
    }

    /// Hands over every image that arrives, and none that a newer one has followed meanwhile, until `stop`
    /// speaks.
    pub fn serve(
        &mut self,
        mut stop: UnboundedReceiver<()>,
        mut handle: impl FnMut(Image, &MessageInfo, &mut Outputs),
    ) {
        let Bus { images, outputs } = self;
        let listener = outputs.context.domain_participant().status_listener();
        let events = listener.as_async_status_stream();
        let arriving = images.async_stream();
        pin_mut!(events, arriving);
        let mut unreadable = Throttle::default();
        block_on(async {
            loop {
                select! {
                    _ = stop.next() => return,
                    event = events.select_next_some() => outputs.report(&event),
                    first = arriving.select_next_some() => {
                        let mut latest = None;
                        let mut next = Some(first);
                        while let Some(image) = next {
                            match image {
                                Ok(image) => latest = Some(image),
                                Err(error) => unreadable.warn(format_args!("an image cannot be read: {error}")),
                            }
                            next = images.take().transpose();
                        }
                        if let Some((image, info)) = latest {
                            handle(image, &info, outputs);
                        }
                    }
                }
            }
        });
    }
}

impl Outputs {
    /// Whether somebody listens.
    pub fn is_wanted<M: Serialize>(&self, output: &Output<M>) -> bool {
        self.node.subscription_count(&output.topic) > 0
    }

    /// Says who comes, and who cannot be spoken with.
    fn report(&self, event: &Event) {
        let topic = |guid: &GUID| self.topics.get(guid).map(String::as_str);
        match event {
            Event::RemoteWriterMatched { local_reader, .. } => {
                if let Some(topic) = topic(local_reader) {
                    log::info!("{topic}: there is a publisher");
                }
            }
            Event::RemoteReaderMatched { local_writer, .. } => {
                if let Some(topic) = topic(local_writer) {
                    log::info!("{topic}: there is a subscriber");
                }
            }
            Event::RemoteWriterQosIncompatible { local_reader, requested_qos, offered_qos, .. } => {
                let topic = topic(local_reader).unwrap_or("a topic");
                let difference = difference(offered_qos, requested_qos);
                log::warn!(
                    "{topic}: a publisher offers another quality of service than is asked for{difference}"
                );
            }
            Event::RemoteReaderQosIncompatible { local_writer, requested_qos, offered_qos, .. } => {
                let topic = topic(local_writer).unwrap_or("a topic");
                let difference = difference(offered_qos, requested_qos);
                log::warn!(
                    "{topic}: a subscriber asks for another quality of service than is offered{difference}"
                );
            }
            _ => {}
        }
    }
}

/// The first policy in which what is offered is too little, for people.
fn difference(offered: &QosPolicies, requested: &QosPolicies) -> String {
    offered.compliance_failure_wrt(requested).map_or(String::new(), |policy| format!(" ({policy:?})"))
}

/// A topic that is published.
pub struct Output<M: Serialize> {
    publisher: Publisher<M>,
    topic: String,
    lost: Throttle,
}

impl<M: Serialize> Output<M> {
    /// Publishes. What cannot be sent now is lost, with a warning.
    pub fn send(&mut self, message: M) {
        if let Err(error) = self.publisher.publish(message) {
            self.lost.warn(format_args!(
                "{}: a message is lost, a subscriber does not follow: {error}",
                self.topic
            ));
        }
    }
}

/// A node whose topics come into being.
struct Opening<'a> {
    names: &'a Names,
    node: Node,
    context: Context,
    topics: HashMap<GUID, String>,
}

impl Opening<'_> {
    fn output<M: Serialize>(
        &mut self,
        name: &str,
        (package, message): (&str, &str),
        qos: QosProfile,
    ) -> Result<Output<M>, String> {
        let topic = self.names.topic(name);
        let cannot = |error: String| format!("topic {topic}: {error}");
        let parsed = Name::parse(&topic).map_err(|error| cannot(error.to_string()))?;
        let made = self.node.create_topic(&parsed, MessageTypeName::new(package, message), &qos);
        let publisher = made.and_then(|made| self.node.create_publisher(&made, None));
        let publisher = publisher.map_err(|error| cannot(error.to_string()))?;
        self.topics.insert(publisher.guid(), topic.clone());
        Ok(Output { publisher, topic, lost: Throttle::default() })
    }

    /// The subscription of frames, as sensors' data is taken: whatever arrived last, and nothing twice. The
    /// bus keeps one image; by default it keeps up to 64 of them.
    fn images(&mut self, name: &str) -> Result<Subscription<Image>, String> {
        let topic = self.names.topic(name);
        let cannot = |error: String| format!("topic {topic}: {error}");
        let parsed = Name::parse(&topic).map_err(|error| cannot(error.to_string()))?;
        let qos = QosPolicyBuilder::new()
            .best_effort()
            .durability(policy::Durability::Volatile)
            .history(policy::History::KeepLast { depth: 1 })
            .resource_limits(ResourceLimits { max_samples: 1, max_instances: 1, max_samples_per_instance: 1 })
            .build();
        let made = self.context.domain_participant().create_topic(
            parsed.to_dds_name("rt", &self.names.node, ""),
            MessageTypeName::new(IMAGE.0, IMAGE.1).dds_msg_type(),
            &qos,
            TopicKind::NoKey,
        );
        let made: Topic = made.map_err(|error| cannot(error.to_string()))?;
        let images = self.node.create_subscription(&made, None).map_err(|error| cannot(error.to_string()))?;
        self.topics.insert(images.guid(), topic);
        Ok(images)
    }
}
