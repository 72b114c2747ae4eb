//! Graphs: captured work, replayed as a whole.

use std::sync::Arc;

use crate::driver::Driver;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Call, Handle, HostPtr, In, Out, entry_points};
use crate::launch::{Arguments, Launch, Shape};
use crate::queue::Work;

/// A node of a graph.
#[derive(Clone)]
pub struct Node {
    /// The node's handle, the same in the graph and in its instances.
    pub handle: Handle,
    /// What it does.
    pub work: Work,
    /// The nodes that it follows.
    pub after: Vec<usize>,
}

impl Node {
    /// `CUgraphNodeType`.
    fn kind(&self) -> u32 {
        match self.work {
            Work::Kernel(_) => 0,
            Work::Copy(_) => 1,
            Work::Fill(_) => 2,
            Work::HostFunction(..) => 3,
            Work::Graph(..) => 4,
            Work::Record(_) => 7,
            Work::Free(_) => 11,
        }
    }
}

/// A captured graph.
pub struct Graph {
    /// Nodes; each follows earlier ones only.
    pub nodes: Arc<Vec<Node>>,
}

/// An instantiated graph. Launches that are queued keep the nodes as they were.
pub struct Exec {
    nodes: Arc<Vec<Node>>,
}

/// `CUDA_KERNEL_NODE_PARAMS`, version 1: how version 2 begins.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNodeParams {
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    each: In<HostPtr>,
    extra: In<usize>,
}

/// `CUDA_KERNEL_NODE_PARAMS`, version 2.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNodeParams2 {
    params: KernelNodeParams,
    kernel: Handle,
    context: Handle,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InstantiateParams {
    flags: u64,
    upload_stream: Handle,
    error_node: Handle,
    result: u32,
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UpdateResult {
    result: u32,
    error_node: Handle,
    error_from_node: Handle,
}

const UPDATE_TOPOLOGY_CHANGED: u32 = 2;
const UPDATE_KIND_CHANGED: u32 = 3;

/// Free on launch, upload, use node priority: without effect here. Launch from the device is not supported.
const FLAGS: u64 = 1 | 2 | 8;

fn instantiate(driver: &mut Driver, call: &mut Call, graph: Handle, flags: u64) -> Outcome<Handle> {
    call.note(format_args!("graph={graph:#x} flags={flags}"));
    if flags & !FLAGS != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let nodes = driver.graphs.get(graph)?.nodes.clone();
    let exec = driver.execs.add(Exec { nodes });
    call.note(format_args!("exec={exec:#x}"));
    Ok(exec)
}

fn node_of(driver: &Driver, node: Handle) -> Outcome<&Node> {
    let mut nodes = driver.graphs.values().flat_map(|graph| graph.nodes.iter());
    nodes.find(|candidate| candidate.handle == node).ok_or(CUresult::INVALID_VALUE)
}

/// Writes up to `count` of `items` for a caller that asked for them, and how many there are.
fn list(items: &[Handle], place: Out<Handle>, count: Out<usize>, room: usize) -> Outcome {
    if place.is_null() {
        return count.set(items.len());
    }
    // Places beyond what there is become null, as the API says.
    for index in 0..room {
        place.set_at(index, items.get(index).copied().unwrap_or(0))?;
    }
    count.set(items.len().min(room))
}

fn update(exec: &mut Exec, new: &Arc<Vec<Node>>) -> Result<(), u32> {
    if exec.nodes.len() != new.len() {
        return Err(UPDATE_TOPOLOGY_CHANGED);
    }
    for (old, new) in exec.nodes.iter().zip(new.iter()) {
        if old.after != new.after {
            return Err(UPDATE_TOPOLOGY_CHANGED);
        }
        if old.kind() != new.kind() {
            return Err(UPDATE_KIND_CHANGED);
        }
    }
    let work = new.iter().zip(exec.nodes.iter());
    exec.nodes = Arc::new(work.map(|(new, old)| Node { handle: old.handle, ..new.clone() }).collect());
    Ok(())
}

fn params_of(launch: &Launch) -> KernelNodeParams {
    // The pointers that the API hands out live as long as the graph with a driver; here for the process's
    // life: they are few.
    let packed: &'static mut [u8] = launch.parameters.clone().leak();
    let each: Vec<HostPtr> =
        launch.layout().map(|(offset, _)| HostPtr(packed[offset..].as_mut_ptr().cast())).collect();
    KernelNodeParams {
        function: launch.function,
        grid: launch.shape.grid,
        block: launch.shape.block,
        shared: launch.shape.shared,
        each: In::of(each.leak()),
        extra: In::null(),
    }
}

fn kernel_params(driver: &Driver, node: Handle) -> Outcome<KernelNodeParams> {
    match &node_of(driver, node)?.work {
        Work::Kernel(launch) => Ok(params_of(launch)),
        _ => Err(CUresult::INVALID_VALUE),
    }
}

/// Gives a kernel node of an instance another launch; later launches of the instance see it.
fn set_kernel_params(
    driver: &mut Driver,
    call: &mut Call,
    exec: Handle,
    node: Handle,
    params: KernelNodeParams,
) -> Outcome {
    let shape = Shape { grid: params.grid, block: params.block, shared: params.shared };
    let arguments = Arguments { each: params.each, extra: params.extra };
    let launch = driver.prepare(call, params.function, shape, arguments)?;
    let nodes = Arc::make_mut(&mut driver.execs.get_mut(exec)?.nodes);
    let node = nodes.iter_mut().find(|candidate| candidate.handle == node).ok_or(CUresult::INVALID_VALUE)?;
    match &node.work {
        Work::Kernel(_) => node.work = Work::Kernel(launch),
        _ => return Err(CUresult::INVALID_VALUE),
    }
    Ok(())
}

entry_points! {
    /// Makes a captured graph ready to launch.
    healthy fn cuGraphInstantiateWithFlags(exec: Out<Handle>, graph: Handle, flags: u64) |call, driver| {
        let made = instantiate(driver, call, graph, flags)?;
        exec.set(made)
    }

    /// The form before CUDA 12, with a log buffer that stays empty.
    healthy fn cuGraphInstantiate_v2(
        exec: Out<Handle>, graph: Handle, _node: Out<Handle>, _log: HostPtr, _bytes: usize,
    ) |call, driver| {
        let made = instantiate(driver, call, graph, 0)?;
        exec.set(made)
    }

    /// Makes a captured graph ready to launch.
    healthy fn cuGraphInstantiateWithParams(
        exec: Out<Handle>, graph: Handle, params: In<InstantiateParams>,
    ) |call, driver| {
        let params = params.get()?;
        let made = instantiate(driver, call, graph, params.flags)?;
        exec.set(made)
    }

    /// Nothing to upload.
    healthy fn cuGraphUpload(exec: Handle, stream: Handle) |_, driver| {
        driver.execs.get(exec)?;
        driver.resolve(stream).map(|_| ())
    }

    /// Queues the whole graph.
    healthy fn cuGraphLaunch(exec: Handle, stream: Handle) |call, driver| {
        let nodes = driver.execs.get(exec)?.nodes.clone();
        call.note(format_args!("exec={exec:#x} nodes={} stream={stream:#x}", nodes.len()));
        driver.enqueue(stream, Work::Graph(nodes, Vec::new()))
    }

    /// Forgets an instance; launches that are queued run still.
    healthy fn cuGraphExecDestroy(exec: Handle) |_, driver| {
        driver.execs.remove(exec).map(|_| ())
    }

    /// Forgets a graph; its instances stay.
    healthy fn cuGraphDestroy(graph: Handle) |_, driver| {
        driver.graphs.remove(graph).map(|_| ())
    }

    /// An empty graph.
    healthy fn cuGraphCreate(graph: Out<Handle>, flags: u32) |_, driver| {
        if flags != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        graph.set(driver.graphs.add(Graph { nodes: Arc::default() }))
    }

    /// The nodes, or how many there are.
    healthy fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) |_, driver| {
        let handles: Vec<Handle> = driver.graphs.get(graph)?.nodes.iter().map(|node| node.handle).collect();
        let room = if nodes.is_null() { 0 } else { count.input().get()? };
        list(&handles, nodes, count, room)
    }

    /// The nodes that follow none, or how many there are.
    healthy fn cuGraphGetRootNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) |_, driver| {
        let roots = driver.graphs.get(graph)?.nodes.iter().filter(|node| node.after.is_empty());
        let handles: Vec<Handle> = roots.map(|node| node.handle).collect();
        let room = if nodes.is_null() { 0 } else { count.input().get()? };
        list(&handles, nodes, count, room)
    }

    /// Which node follows which, or how many such pairs there are.
    healthy fn cuGraphGetEdges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) |_, driver| {
        let nodes = &driver.graphs.get(graph)?.nodes;
        let edges = nodes.iter().flat_map(|node| node.after.iter().map(|before| (nodes[*before].handle, node.handle)));
        let (before, after): (Vec<Handle>, Vec<Handle>) = edges.unzip();
        if from.is_null() != to.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        let room = if from.is_null() { 0 } else { count.input().get()? };
        list(&before, from, count, room)?;
        list(&after, to, count, room)
    }

    /// Kernel, copy, memset and so on.
    healthy fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) |_, driver| {
        kind.set(node_of(driver, node)?.kind())
    }

    /// A kernel node's launch, as before CUDA 12.
    healthy fn cuGraphKernelNodeGetParams(node: Handle, params: Out<KernelNodeParams>) |_, driver| {
        params.set(kernel_params(driver, node)?)
    }

    /// A kernel node's launch.
    healthy fn cuGraphKernelNodeGetParams_v2(node: Handle, params: Out<KernelNodeParams2>) |_, driver| {
        params.set(KernelNodeParams2 { params: kernel_params(driver, node)?, kernel: 0, context: 0 })
    }

    /// Gives a kernel node of an instance another launch, as before CUDA 12.
    healthy fn cuGraphExecKernelNodeSetParams(
        exec: Handle, node: Handle, params: In<KernelNodeParams>,
    ) |call, driver| {
        set_kernel_params(driver, call, exec, node, params.get()?)
    }

    /// Gives a kernel node of an instance another launch.
    healthy fn cuGraphExecKernelNodeSetParams_v2(
        exec: Handle, node: Handle, params: In<KernelNodeParams2>,
    ) |call, driver| {
        set_kernel_params(driver, call, exec, node, params.get()?.params)
    }

    /// Gives an instance the work of a graph of the same topology.
    healthy fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, result: Out<UpdateResult>) |_, driver| {
        let nodes = driver.graphs.get(graph)?.nodes.clone();
        let updated = update(driver.execs.get_mut(exec)?, &nodes);
        result.set(UpdateResult { result: updated.err().unwrap_or(0), error_node: 0, error_from_node: 0 })?;
        updated.map_err(|_| CUresult::GRAPH_EXEC_UPDATE_FAILURE)
    }
}
