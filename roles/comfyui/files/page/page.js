// Opens a workflow whose models this host has, where the page would open ComfyUI's own example or the gallery.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

async function given(file) {
  const answer = await api.fetchApi(`/workflow_templates/wanmetal/${encodeURIComponent(file)}`, { cache: "no-store" });
  return answer.ok ? answer : undefined;
}

app.registerExtension({
  name: "wanmetal.page",
  async setup() {
    const name = (await (await given("first.txt"))?.text())?.trim();
    const graph = name && (await (await given(`${name}.json`))?.json());
    if (!graph) return; // the host has no workflow of ours
    const { setting, workflow } = app.extensionManager;
    const load = app.loadGraphData.bind(app);
    app.loadGraphData = (data, ...rest) => {
      if (data) return load(data, ...rest);
      // A file that somebody has saved under this name is theirs, and a tab of its name would save over it.
      const taken = workflow.getWorkflowByPath?.(`workflows/${name}.json`);
      return load(structuredClone(graph), true, true, taken ? null : name);
    };
    // Without it the page opens the gallery for somebody new, and no workflow.
    if (!setting.get("Comfy.TutorialCompleted")) await setting.set("Comfy.TutorialCompleted", true);
  },
});
